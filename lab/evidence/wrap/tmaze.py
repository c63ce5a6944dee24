"""The T-maze as pictures: an rsl_rl actor without recurrence gets a memory for its sign.

The actor is rsl_rl's own CNN model. It was cloned from the expert while the sign was lit all the
time, and is frozen; in use the sign is lit for the first five steps alone. What it is wrapped with
sees the 64 numbers before its last layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import stategate
from lab.evidence.robot.env import HeldRobot
from lab.evidence.robot.tmaze import TMaze
from lab.evidence.robot.train import Demos, demonstrate
from lab.evidence.wrap.measure import digest, row_of
from lab.evidence.wrap.rows import Row, Rule
from stategate.calibration.gates.descent import reproducible
from stategate.common import console
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError
from stategate.models.memories.wrapped import RememberingPolicy
from stategate.models.step import initial_states
from stategate.runtime import Session

SIDE = 16
HOLDS = (0, 40, 150, 600, 2000)
_DEMOS, _EPISODES, _HELD_OUT = 400, 40, 1_000_000
_ACTOR_ITERATIONS = 400
_UNREACHED = 3.0e38

Act = Callable[
    [NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]], NDArray[Any]
]
"""From pictures ``(n, 1, 16, 16)``, velocities ``(n, 2)``, which memories a schedule writes, and
which episodes still run, to actions ``(n, 2)``."""
Opens = Callable[[int], NDArray[np.bool_]]
"""From a step to which of the episodes write in it."""


def picture(observed: NDArray[np.float32], sign: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pictures ``(n, 1, 16, 16)`` of observations ``(n, 6)``.

    Args:
        observed: Position, velocity, sign, and whether it may go; see `HeldRobot`.
        sign: ``(n,)``: lit on the right above 0, on the left below, dark at 0.
    """
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    # Positions are in units of two metres; the maze is three cells wide and four high.
    x = (observed[:, 0] * 2.0 + 2.0) * SIDE / 4.0
    y = (2.0 - observed[:, 1] * 2.0) * SIDE / 4.0
    far = (columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2
    image = np.exp(-far / 3.0)
    lit = np.where(columns < SIDE // 2, -sign[:, None, None], sign[:, None, None])
    image += np.where(rows < 3, np.clip(lit, 0.0, 1.0), 0.0)
    image += np.where(rows == SIDE - 1, observed[:, 5, None, None], 0.0)
    return np.asarray(image[:, None], np.float32)


class ActorFeatures(nn.Module):
    """What an rsl_rl actor computes before its last layer."""

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, picture: Tensor, velocity: Tensor) -> Tensor:
        """Features ``(rows, 64)``."""
        actor: Any = self.actor
        features: Tensor = actor.get_latent({"picture": picture, "velocity": velocity})
        for layer in list(actor.mlp)[:-1]:
            features = layer(features)
        return features


def cloned_actor(demos: Demos, seed: int) -> nn.Module:
    """An rsl_rl CNN actor that goes where a sign shows that is lit all the time."""
    from tensordict import TensorDict

    example = TensorDict(
        {"picture": torch.zeros(1, 1, SIDE, SIDE), "velocity": torch.zeros(1, 2)}, [1]
    )
    models: Any = import_module("rsl_rl.models")  # which has no types
    actor: nn.Module = models.CNNModel(
        example,
        {"actor": ["picture", "velocity"]},
        "actor",
        output_dim=2,
        hidden_dims=[64, 64],
        cnn_cfg={"output_channels": [8, 16], "kernel_size": 3, "stride": 2, "padding": "zeros"},
    )
    pictures, velocities, actions = [], [], []
    for i in range(len(demos.length)):
        x = _observed(demos, i)
        # The first observations show the side; here the sign is never switched off.
        pictures.append(picture(x, np.full(len(x), np.sign(x[0, 4]), np.float32)))
        velocities.append(x[:, 2:4])
        actions.append(demos.action[: len(x), i].numpy())
    images, speed, right = (
        torch.from_numpy(np.concatenate(a)) for a in (pictures, velocities, actions)
    )
    optimiser = torch.optim.Adam(actor.parameters(), lr=2e-3)
    for _ in range(_ACTOR_ITERATIONS):
        at = torch.randint(len(images), (256,))
        answer = actor(TensorDict({"picture": images[at], "velocity": speed[at]}, [256]))
        loss = (answer - right[at]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return actor.eval()


def _observed(demos: Demos, i: int) -> NDArray[np.float32]:
    return np.asarray(demos.x[: int(demos.length[i]), i].numpy(), np.float32)


def tmaze_row(task: str, seed: int, iterations: int) -> Row:
    """Clone the actor, wrap it, and let the bundle drive."""
    env = HeldRobot(TMaze())
    key = digest(task, seed, iterations)
    with console.progress(_DEMOS, "demonstrations") as report:
        demos = demonstrate(env, _DEMOS, report)
    with reproducible(seed):
        actor = cloned_actor(demos, seed)
    recordings = []
    for i in range(_DEMOS):
        x = _observed(demos, i)
        inputs = {
            "picture": picture(x, x[:, 4])[:, None],
            "velocity": x[:, None, 2:4],
            "action": demos.action[: len(x), i].numpy(),
        }
        recordings.append(Episode(inputs))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "wrapped"
        try:
            wrapped = stategate.wrap(
                ActorFeatures(actor),
                recordings,
                out,
                iterations=iterations,
                seed=seed,
                allowed_loss=0.02,
            )
        except CalibrationError as refusal:
            return Row(task, seed, key, refusal=str(refusal))
        rules: list[Rule] = []
        for hold in HOLDS:
            gate = _by_bundle(out, hold)
            rules += [gate, _drive("actor alone", hold, _acting(actor))]
            for rule, opens in _schedules(gate.write_rate, seed).items():
                rules.append(_drive(rule, hold, _remembering(wrapped.policy), opens))
        return row_of(task, seed, key, wrapped, tuple(rules))


def _never(_: int) -> NDArray[np.bool_]:
    return np.zeros(_EPISODES, bool)


def _schedules(rate: float, seed: int) -> dict[str, Opens]:
    """Rules that do not look; the last two write as often as the gate did."""
    rng = np.random.default_rng((seed, 41))
    # Each episode at another phase, or one lucky step would decide all of them.
    phase = np.arange(_EPISODES) / _EPISODES
    return {
        "always": lambda t: ~_never(t),
        "never": _never,
        "random": lambda t: rng.random(_EPISODES) < rate,
        "periodic": lambda t: np.floor((t + 1) * rate + phase) > np.floor(t * rate + phase),
    }


def _drive(rule: str, hold: int, act: Act, opens: Opens = _never) -> Rule:
    """Success over episodes side by side, and the share of their steps that a schedule writes."""
    robots = [HeldRobot(TMaze()) for _ in range(_EPISODES)]
    seeds = range(_HELD_OUT, _HELD_OUT + _EPISODES)
    begun = [
        robot.reset(seed=i, options={"hold": hold}) for robot, i in zip(robots, seeds, strict=True)
    ]
    x = np.stack([observation for observation, _ in begun]).astype(np.float32)
    alive, reached = np.ones(_EPISODES, bool), np.zeros(_EPISODES, bool)
    writes = steps = t = 0
    while alive.any():
        is_open = opens(t)
        actions = act(picture(x, x[:, 4]), x[:, 2:4], is_open, alive)
        writes, steps, t = writes + int((is_open & alive).sum()), steps + int(alive.sum()), t + 1
        for i in np.flatnonzero(alive):
            x[i], _, ended, late, info = robots[i].step(np.clip(actions[i], -1, 1))
            alive[i] = not (ended or late)
            reached[i] = not alive[i] and bool(info["success"])
    return Rule(rule, writes / steps, float(reached.mean()), _EPISODES, hold)


def _by_bundle(bundle: Path, hold: int) -> Rule:
    """A session an episode; what was written is what their ledgers say."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session.open(bundle)) for _ in range(_EPISODES)]

        def act(
            image: NDArray[np.float32],
            velocity: NDArray[np.float32],
            _: NDArray[np.bool_],
            alive: NDArray[np.bool_],
        ) -> NDArray[Any]:
            actions = np.zeros((_EPISODES, 2), np.float32)
            for i in np.flatnonzero(alive):
                inputs = {"picture": image[i : i + 1], "velocity": velocity[i : i + 1]}
                actions[i] = sessions[i].step(**inputs)["action"][0]
            return actions

        rule = _drive("gate", hold, act)
        ledgers = [session.ledger for session in sessions]
        rate = sum(ledger.writes for ledger in ledgers) / sum(ledger.steps for ledger in ledgers)
    return msgspec.structs.replace(rule, write_rate=rate)


def _remembering(policy: RememberingPolicy) -> Act:
    states = initial_states(policy, _EPISODES)

    @torch.no_grad()
    def act(
        image: NDArray[np.float32],
        velocity: NDArray[np.float32],
        is_open: NDArray[np.bool_],
        _: NDArray[np.bool_],
    ) -> NDArray[Any]:
        nonlocal states
        limits = np.where(is_open, -_UNREACHED, _UNREACHED).astype(np.float32)
        inputs = {"picture": image, "velocity": velocity, "threshold": limits[:, None]}
        result = policy.step({k: torch.from_numpy(v) for k, v in inputs.items()}, states)
        states = dict(result.states)
        return result.outputs["action"].numpy()

    return act


def _acting(actor: nn.Module) -> Act:
    @torch.no_grad()
    def act(
        image: NDArray[np.float32],
        velocity: NDArray[np.float32],
        *_: NDArray[np.bool_],
    ) -> NDArray[Any]:
        from tensordict import TensorDict

        inputs = {"picture": torch.from_numpy(image), "velocity": torch.from_numpy(velocity)}
        answer: Tensor = actor(TensorDict(inputs, [_EPISODES]))
        return answer.numpy()

    return act
