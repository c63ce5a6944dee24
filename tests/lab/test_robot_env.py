"""The environment around a body, shown on one that needs no simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lab.evidence.robot.env import CUE, NOISE, Body, HeldRobot
from stategate.contract.errors import EpisodeError

Make = Callable[[], Body]


def observations(cart: Make, goal: int, hold: int, steps: int, action: float = 0.0) -> np.ndarray:
    env = HeldRobot(cart())
    seen = [env.reset(seed=3, options={"hold": hold, "goal": goal})[0]]
    seen += [env.step(np.full(1, action, np.float32))[0] for _ in range(steps)]
    return np.stack(seen)


def test_the_goal_is_shown_in_the_first_steps_and_never_again(cart: Make) -> None:
    left, right = observations(cart, 0, 6, 30), observations(cart, 1, 6, 30)
    assert (left[:CUE, 1] < -0.9).all()
    assert (right[:CUE, 1] > 0.9).all()
    assert np.array_equal(left[CUE:], right[CUE:])
    assert np.array_equal(left[:, [0, 2]], right[:, [0, 2]])


def test_sensors_are_noisy_and_no_two_readings_alike(cart: Make) -> None:
    still = observations(cart, 1, 400, 400)[CUE:, :]
    assert np.unique(still[:, 1]).size > 390
    assert still[:, 1].std() == pytest.approx(NOISE, rel=0.15)


def test_the_brakes_are_on_until_the_hold_is_over(cart: Make) -> None:
    env = HeldRobot(cart())
    _, info = env.reset(seed=0, options={"hold": 7})
    gone = []
    while not gone or not gone[-1]:
        assert not info["go"]
        _, _, _, _, info = env.step(np.ones(1, np.float32))
        gone.append(info["go"])
    # The simulator stops with the cart, which the first of its steps does not move.
    assert env.body.moves == [0.0]  # type: ignore[attr-defined]
    observation, *_ = env.step(np.ones(1, np.float32))
    assert observation[2] > 0.9
    assert env.body.moves[-1] == 1.0  # type: ignore[attr-defined]


def test_an_episode_ends_with_success_failure_or_the_limit(cart: Make) -> None:
    for action, expected in ((1.0, (True, True)), (-1.0, (True, False)), (0.0, (False, False))):
        env = HeldRobot(cart())
        env.reset(seed=1, options={"goal": 1})
        steps, ended, late = 0, False, False
        while not (ended or late):
            _, _, ended, late, info = env.step(np.full(1, action, np.float32))
            steps += 1
        assert (ended, info["success"]) == expected
        assert steps <= CUE + env.body.limit


@pytest.mark.parametrize("hold", [-1, 2.5, "long"])
def test_a_hold_that_is_no_number_of_steps_is_refused(cart: Make, hold: object) -> None:
    with pytest.raises(EpisodeError, match="number of steps"):
        HeldRobot(cart()).reset(seed=0, options={"hold": hold})
