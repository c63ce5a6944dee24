"""Behaviour cloning: policies learn from an expert who knows the goal, held up to 40 steps.

What is executed is the expert's action with noise, what is learned is the action without it, so
that a policy has seen how to come back (DART, arXiv:1703.09327). Only steps in which the robot may
move count; a price on the chance of a write is for every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lab.evidence.robot.env import CUE, HeldRobot
from lab.evidence.robot.policies import build
from lab.training.aura import AuraLearner
from lab.training.stream import GateRule
from lab.training.stream import Recipe as Schedule
from stategate.calibration.gates.descent import reproducible
from stategate.contract.errors import SpecError

LONGEST_HOLD = 40
_EXPERT_NOISE = 0.3
# Holds grow over this share of training from those that move by this step: nothing learns to keep
# for 40 steps what it has not learned to use yet.
_GROWING, _SHORTEST = 0.4, CUE + 5

_GATES: dict[str, GateRule] = {"aura": "learned", "aura-always": "always"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a checkpoint, apart from library versions.

    Attributes:
        task: Name of the body.
        policy: One of `lab.evidence.robot.policies.POLICIES`.
        seed: Of weights, batches and gate draws; demonstrations are the same for all.
        iterations: Optimiser steps.
        demos: Episodes of the expert, holds even over 0 to 40.
        batch: Episodes in an optimiser step.
        learning_rate: Peak; cosine down to 3 % after 50 steps of warm-up.
        write_price: Price of a certain write in every step, on the schedule of AURA-Mem's training.
    """

    task: str
    policy: str
    seed: int
    iterations: int
    demos: int
    batch: int
    learning_rate: float
    write_price: float

    @property
    def schedule(self) -> Schedule:
        """When writes are priced and, where gates are drawn, how."""
        gate: GateRule = _GATES.get(self.policy, "soft")
        whole = Schedule(gate=gate, iterations=self.iterations, write_price=self.write_price)
        return replace(whole, settle_share=0.0) if gate == "soft" else whole


class Demos(NamedTuple):
    """Episodes of the expert side by side, padded with zeros.

    Attributes:
        x: Observations ``(time, episodes, features)`` float32.
        action: What the expert wanted ``(time, episodes, actions)`` float32.
        length: Steps of each ``(episodes,)`` int64.
        start: The step in which each may move first ``(episodes,)`` int64.
        reached: Share of episodes that reached the goal.
    """

    x: Tensor
    action: Tensor
    length: Tensor
    start: Tensor
    reached: float


def demonstrate(
    env: HeldRobot, episodes: int, report: Callable[[int], None] = lambda _: None
) -> Demos:
    """Let the expert act in episodes with the seeds 0, 1, ...

    Args:
        env: The robot.
        episodes: How many.
        report: Called with the number of episodes done.
    """
    rng = np.random.default_rng(2026)
    observations: list[Tensor] = []
    targets: list[Tensor] = []
    starts: list[int] = []
    reached = 0
    for seed in range(episodes):
        hold = int(rng.integers(LONGEST_HOLD + 1))
        observation, info = env.reset(seed=seed, options={"hold": hold})
        xs, actions, done = [], [], False
        while not done:
            action = env.body.expert()
            xs.append(torch.from_numpy(observation))
            actions.append(torch.from_numpy(action.astype(np.float32)))
            noisy = action + _EXPERT_NOISE * rng.standard_normal(action.size)
            observation, _, ended, late, info = env.step(
                np.clip(noisy, -1.0, 1.0).astype(np.float32)
            )
            done = ended or late
        reached += bool(info["success"])
        observations.append(torch.stack(xs))
        targets.append(torch.stack(actions))
        starts.append(CUE + hold)
        report(seed + 1)
    length = torch.tensor([len(x) for x in observations])
    pad = nn.utils.rnn.pad_sequence
    return Demos(pad(observations), pad(targets), length, torch.tensor(starts), reached / episodes)


def clone(
    recipe: Recipe, demos: Demos, report: Callable[[int], None] = lambda _: None
) -> tuple[nn.Module, float]:
    """Train a policy on one thread, leaving the caller's random numbers alone.

    Args:
        recipe: What to train.
        demos: What to learn from.
        report: Called with the number of iterations done.

    Returns:
        The module, and its mean squared error over the last tenth of the iterations.

    Raises:
        SpecError: The loss is no number any more.
    """
    with reproducible(recipe.seed):
        return _clone(recipe, demos, report)


def _clone(recipe: Recipe, demos: Demos, report: Callable[[int], None]) -> tuple[nn.Module, float]:
    module, roll = build(recipe.policy, demos.x.shape[-1], demos.action.shape[-1])
    optimiser = torch.optim.Adam(module.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    total = recipe.iterations

    def rate(i: int) -> float:
        return min(1.0, (i + 1) / 50) * (0.515 + 0.485 * float(np.cos(np.pi * i / total)))

    schedule = recipe.schedule
    choose = AuraLearner(schedule).chooser
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    errors: list[float] = []
    for i in range(total):
        longest = CUE + LONGEST_HOLD * min(1.0, (i + 1) / (_GROWING * total))
        usable = torch.nonzero(demos.start <= max(longest, _SHORTEST)).squeeze(-1)
        chosen = usable[torch.randint(len(usable), (recipe.batch,))]
        time = torch.arange(int(demos.length[chosen].max()))[:, None]
        alive = time < demos.length[chosen]
        moving = alive & (time >= demos.start[chosen])
        y, chance = roll(demos.x[: len(time), chosen], choose(i))
        difference = (y - demos.action[: len(time), chosen])[moving]
        loss = error = (difference * difference).mean()
        if chance is not None and schedule.price(i):
            loss = loss + schedule.price(i) * chance[alive].mean()
        if not bool(torch.isfinite(loss)):
            raise SpecError(
                "the training diverged",
                found=f"a loss of {loss.item()} in iteration {i}",
                remedy="a smaller learning rate",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        errors.append(error.item())
        report(i + 1)
    return module.eval(), float(np.mean(errors[-max(1, total // 10) :]))
