"""The simulated robots themselves; skipped where their simulators are not installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from lab.evidence.robot.cells import RECIPES
from lab.evidence.robot.checkpoint import load, path_of
from lab.evidence.robot.env import CUE, NOISE, Body, HeldRobot
from lab.evidence.robot.policies import build
from lab.evidence.robot.reach import Reach
from lab.evidence.robot.rows import Cell
from lab.evidence.robot.run import Exporter, drive
from lab.evidence.robot.tmaze import TMaze
from lab.evidence.robot.train import demonstrate

maze_needed = pytest.mark.skipif(
    find_spec("gymnasium_robotics") is None,
    reason="gymnasium-robotics is not installed; make evidence-robot-small runs this",
)
arm_needed = pytest.mark.skipif(
    find_spec("metaworld") is None,
    reason="Meta-World is not installed; make evidence-robot-small runs this",
)


class Twins(HeldRobot):
    """Episodes in pairs that differ in nothing but the goal."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        assert seed is not None
        return super().reset(seed=seed // 2, options={**(options or {}), "goal": seed})


robots = pytest.mark.parametrize(
    "make", [pytest.param(TMaze, marks=maze_needed), pytest.param(Reach, marks=arm_needed)]
)


@robots
def test_nothing_that_is_sensed_tells_the_goal_once_it_was_shown(make: Callable[[], Body]) -> None:
    env = HeldRobot(make())
    episodes = []
    for goal in (0, 1):
        push = np.random.default_rng(5)
        seen = [env.reset(seed=8, options={"hold": 10, "goal": goal})[0]]
        for _ in range(CUE + 10 + 15):
            seen.append(env.step(push.uniform(-1, 1, env.body.actions).astype(np.float32))[0])
        episodes.append(np.stack(seen))
    first, second = episodes
    assert np.array_equal(first[CUE:], second[CUE:])
    cue = slice(env.body.sensors, env.body.sensors + env.body.cue)
    assert np.abs(first[:CUE, cue] - second[:CUE, cue]).min() > 0.05
    assert np.ptp(first[-5:, : env.body.sensors]) > 0.1  # it did move


@robots
def test_the_expert_gets_there(make: Callable[[], Body]) -> None:
    assert demonstrate(HeldRobot(make()), 12).reached >= 11 / 12


@robots
def test_a_simulator_that_waits_is_where_one_that_runs_would_be(make: Callable[[], Body]) -> None:
    env, body = HeldRobot(make()), make()
    env.reset(seed=0, options={"hold": 700})
    body.start(0, 0)
    for _ in range(700):
        env.step(np.ones(body.actions, np.float32))
        body.move(np.zeros(body.actions))
    assert env._resting
    assert np.abs(env.body.sense() - body.sense()).max() < 0.1 * NOISE


@maze_needed
def test_one_arm_is_right_and_the_other_ends_the_episode_too() -> None:
    outcomes = []
    for told in (1, 0):
        body = TMaze()
        body.start(0, 1)
        guide = TMaze()
        guide.start(0, told)
        outcome = None
        while outcome is None:
            action = guide.expert()
            guide.move(action)
            outcome = body.move(action)
        outcomes.append(outcome)
    assert outcomes == [True, False]


@arm_needed
def test_the_arm_is_driven_and_judged_as_meta_world_does() -> None:
    from metaworld.policies import SawyerReachV3Policy

    body = Reach()
    body.start(0, 4)
    policy, arm = SawyerReachV3Policy(), body._arm
    for _ in range(100):
        seen = np.concatenate([body._hand, np.zeros(33), body._goal])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its gain is higher than it would like
            wanted = policy.get_action(seen)
        assert np.clip(wanted[:3], -1, 1) == pytest.approx(body.expert(), abs=1e-6)
        reached = body.move(body.expert())
        judged = arm.evaluate_state(arm._get_obs(), np.zeros(4, np.float32))[1]["success"]
        assert bool(judged) == bool(reached)
        if reached:
            return
    pytest.fail("the expert did not get there")


@maze_needed
@pytest.mark.parametrize(("policy", "threshold"), [("gru", None), ("aura", 0.0)])
def test_a_trained_policy_remembers_and_a_wiped_one_is_at_chance(
    policy: str, threshold: float | None, tmp_path: Path
) -> None:
    env = Twins(TMaze())
    seen = demonstrate(env, 2).x.transpose(0, 1).flatten(0, 1).numpy()
    module = build(policy, seen.shape[1], env.body.actions)[0]
    load(path_of(RECIPES["tmaze", policy]), module)
    cell = Cell("tmaze", policy, 0, "float32", threshold, 150)
    bundle = Exporter(policy, module, env.body.actions, seen).bundle(cell, tmp_path / "bundle")
    assert drive(env, bundle, cell, 10, "").successes >= 9
    # Nothing that a wiped policy sees differs within a pair, so it takes the same arm twice.
    wiped = drive(env, bundle, msgspec.structs.replace(cell, wiped=True), 10, "")
    assert wiped.successes <= 5
