"""A body that needs no simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lab.evidence.robot.env import Body, Numbers


class Cart:
    """A cart on a line that has to go left or right."""

    name = "cart"
    sensors, cue, actions, limit = 1, 1, 1, 30

    def start(self, seed: int, goal: int) -> Numbers:
        self.x = np.random.default_rng(seed).uniform(-0.1, 0.1)
        self.side = 1.0 if goal % 2 else -1.0
        self.moves: list[float] = []
        return np.array([self.side])

    def sense(self) -> Numbers:
        return np.array([self.x])

    def move(self, action: Numbers) -> bool | None:
        self.moves.append(float(action[0]))
        self.x += 0.1 * float(action[0])
        return bool(self.x * self.side > 0) if abs(self.x) > 1 else None

    def expert(self) -> Numbers:
        return np.array([self.side])


@pytest.fixture(scope="session")
def cart() -> Callable[[], Body]:
    """Makes a cart."""
    return Cart
