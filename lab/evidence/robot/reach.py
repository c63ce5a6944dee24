"""Meta-World's reach-v3: a Sawyer arm is shown once where its hand has to be.

Meta-World 3.1 would show the goal in its observation; here hand and goal are read apart. A control
step is one of Meta-World's, five of physics; what it computes besides, for rewards, is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lab.evidence.robot.env import Numbers, not_installed

_OBJECT = (0.0, 0.6, 0.02)  # has to be there, 15 cm or more from any goal; nobody looks at it
_CENTRE, _REACH = np.array([0.0, 0.7, 0.2]), 0.3  # metres that the hand's sensors call 0 and 1
_STEP = 0.01  # metres, the most that a control step moves the hand by
_REACHED = 0.05  # metres, Meta-World's own
_GAIN = 5.0  # of Meta-World's scripted expert


class Reach:
    """The arm; goals are even over Meta-World's box of 20 x 10 x 25 cm."""

    name = "reach"
    sensors, cue, actions, limit = 6, 3, 3, 110

    def __init__(self) -> None:
        try:
            from metaworld.envs.sawyer_reach_v3 import SawyerReachEnvV3
        except ImportError as missing:
            raise not_installed("metaworld") from missing
        self._arm = SawyerReachEnvV3()
        # What set_task does, without its list of fifty tasks.
        self._arm._set_task_called = self._arm._freeze_rand_vec = True
        box: Any = self._arm.goal_space
        self._low, self._high = box.low, box.high
        self._goal = self._hand = self._before = np.zeros(3)

    def start(self, seed: int, goal: int) -> Numbers:
        """Move the hand to its start, which is the same for all seeds."""
        goal_numbers = np.random.default_rng((goal, 2)).uniform(-1.0, 1.0, 3)
        self._goal = self._low + (self._high - self._low) * (goal_numbers + 1.0) / 2.0
        self._arm._last_rand_vec = np.concatenate([_OBJECT, self._goal])
        self._arm.seed(seed)
        self._arm.reset()
        self._hand = self._before = self._arm.get_endeff_pos().copy()
        return goal_numbers

    def sense(self) -> Numbers:
        """Where the hand is, and how it moved."""
        moved = (self._hand - self._before) / _STEP
        return np.concatenate([(self._hand - _CENTRE) / _REACH, moved])

    def move(self, action: Numbers) -> bool | None:
        """Move the hand by up to a centimetre in each direction."""
        self._arm.set_xyz_action(action)
        self._arm.do_simulation([0.0, 0.0], n_frames=self._arm.frame_skip)
        self._before, self._hand = self._hand, self._arm.get_endeff_pos().copy()
        near = np.linalg.norm(self._arm.tcp_center - self._goal) <= _REACHED
        return True if near else None

    def expert(self) -> Numbers:
        """Straight to the goal, as Meta-World's scripted policy does."""
        return np.asarray(np.clip(_GAIN * (self._goal - self._hand), -1.0, 1.0))
