"""The T-maze as pictures: an rsl_rl actor without recurrence gets a memory for its sign.

The actor is rsl_rl's own CNN model. It was cloned from the expert while the sign was lit all the
time, and is frozen; in use the sign is lit for the first five steps alone. What it is wrapped with
sees the 64 numbers before its last layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
from stategate.calibration.gates.scan import always
from stategate.calibration.wrap.judging import as_often, never
from stategate.common import console
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError
from stategate.models.memories.wrapped import RememberingPolicy
from stategate.models.step import initial_states
from stategate.runtime import Session

SIDE = 16
HOLDS = (40, 150, 600)
_DEMOS, _EPISODES, _HELD_OUT = 400, 40, 1_000_000
_ACTOR_ITERATIONS = 400
_UNREACHED = 3.0e38

Act = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[Any]]
"""From a picture ``(1, 1, 16, 16)`` and a velocity ``(1, 2)`` to an action ``(2,)``."""


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
        rules = []
        for hold in HOLDS:
            gate = _by_bundle(env, out, hold)
            rules.append(gate)
            choosers: dict[str, Any] = {"always": always}
            if hold == HOLDS[0]:  # what does not remember for so long does not for longer
                choosers |= {"never": never, **as_often(gate.write_rate, seed)}
                unaided = _drive(env, "actor alone", hold, lambda _: _acting(actor))[0]
                rules.append(unaided)
            for rule, choose in choosers.items():
                rules.append(_by_rule(env, wrapped.policy, rule, choose, hold))
        return row_of(task, seed, key, wrapped, tuple(rules))


def _drive(env: HeldRobot, rule: str, hold: int, begin: Callable[[int], Act]) -> tuple[Rule, int]:
    """Success over episodes, as of a rule that never writes; and the steps that they took.

    A policy begins each with an empty memory.
    """
    reached = steps = 0
    for episode in range(_HELD_OUT, _HELD_OUT + _EPISODES):
        act = begin(episode)
        observation, info = env.reset(seed=episode, options={"hold": hold})
        ended = late = False
        while not (ended or late):
            x = np.asarray(observation, np.float32)[None]
            action = act(picture(x, x[:, 4]), x[:, 2:4])
            observation, _, ended, late, info = env.step(np.clip(action, -1, 1))
            steps += 1
        reached += bool(info["success"])
    return Rule(rule, 0.0, reached / _EPISODES, _EPISODES, hold), steps


def _by_bundle(env: HeldRobot, bundle: Path, hold: int) -> Rule:
    with Session.open(bundle) as session:

        def begin(_: int) -> Act:
            session.reset()
            return lambda image, velocity: session.step(picture=image, velocity=velocity)["action"][
                0
            ]

        rule, steps = _drive(env, "gate", hold, begin)
        writes = session.ledger.writes
    return msgspec.structs.replace(rule, write_rate=writes / steps)


def _by_rule(env: HeldRobot, policy: RememberingPolicy, rule: str, choose: Any, hold: int) -> Rule:
    writes = 0

    def begin(_: int) -> Act:
        states = initial_states(policy)
        t = 0

        @torch.no_grad()
        def act(image: NDArray[np.float32], velocity: NDArray[np.float32]) -> NDArray[Any]:
            nonlocal states, t, writes
            is_open = bool(choose(t, torch.zeros(1, 1)))
            writes, t = writes + is_open, t + 1
            limit = torch.tensor([-_UNREACHED if is_open else _UNREACHED])
            inputs = {
                "picture": torch.from_numpy(image),
                "velocity": torch.from_numpy(velocity),
                "threshold": limit,
            }
            result = policy.step(inputs, states)
            states = dict(result.states)
            return result.outputs["action"][0].numpy()

        return act

    driven, steps = _drive(env, rule, hold, begin)
    return msgspec.structs.replace(driven, write_rate=writes / steps)


def _acting(actor: nn.Module) -> Act:
    @torch.no_grad()
    def act(image: NDArray[np.float32], velocity: NDArray[np.float32]) -> NDArray[Any]:
        from tensordict import TensorDict

        inputs = {"picture": torch.from_numpy(image), "velocity": torch.from_numpy(velocity)}
        answer: Tensor = actor(TensorDict(inputs, [1]))
        return answer[0].numpy()

    return act
