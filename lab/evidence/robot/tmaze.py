"""The T-maze: a ball in a corridor that forks, shown at its start which arm is the right one.

PointMaze of gymnasium-robotics 1.4 with a map of our own. Its physics runs at 100 Hz; a control
step is three of those.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np

from lab.evidence.robot.env import Numbers, not_installed

_MAP = [
    [1, 1, 1, 1, 1],
    [1, "g", 0, "g", 1],
    [1, 1, 0, 1, 1],
    [1, 1, 0, 1, 1],
    [1, 1, "r", 1, 1],
    [1, 1, 1, 1, 1],
]
_JUNCTION_Y = 1.5  # centre of the arms' row in metres; a cell is one metre wide
_ARM_X = 1.0
_FORK_Y = 1.2  # from where on the arm can be entered
# The expert keeps to a side on its way. Without that a handful of steps at the fork are all that
# the goal decides, and none but the GRU learned to remember it in a thousand iterations.
_LEAN = 0.2
_REACHED = 0.3  # metres
_PHYSICS_STEPS = 3
_UNITS: Numbers = np.array([2.0, 2.0, 5.0, 5.0])  # metres and metres a second that sensors call 1


class TMaze:
    """The ball; the right arm is +1 for odd goals and -1 for even ones."""

    name = "tmaze"
    sensors, cue, actions, limit = 4, 1, 2, 80

    def __init__(self) -> None:
        try:
            # It tells about versions of other environments while it is imported.
            with contextlib.redirect_stderr(io.StringIO()):
                from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
        except ImportError as missing:
            raise not_installed("gymnasium_robotics") from missing
        self._maze = PointMazeEnv(maze_map=_MAP, continuing_task=False, reset_target=False)
        self._ball = self._maze.point_env
        self._ball.frame_skip = _PHYSICS_STEPS
        self._side = 1.0
        self._state: Numbers = np.zeros(4)

    def start(self, seed: int, goal: int) -> Numbers:
        """Put the ball somewhere in the lowest cell."""
        self._state = self._maze.reset(seed=seed)[0]["observation"]
        self._side = 1.0 if goal % 2 else -1.0
        return np.array([self._side])

    def sense(self) -> Numbers:
        """Position and velocity."""
        return self._state / _UNITS

    def move(self, action: Numbers) -> bool | None:
        """Push the ball; the episode ends in either arm."""
        self._state = self._ball.step(action)[0]
        x, y = self._state[:2]
        for side in (self._side, -self._side):
            if np.hypot(x - side * _ARM_X, y - _JUNCTION_Y) < _REACHED:
                return bool(side == self._side)
        return None

    def expert(self) -> Numbers:
        """Up the corridor on the side of the arm, then into it, slowing down on the way."""
        far = _ARM_X if self._state[1] > _FORK_Y else _LEAN
        end_of_arm = np.array([self._side * far, _JUNCTION_Y])
        pushed = 4.0 * (end_of_arm - self._state[:2]) - self._state[2:]
        return np.asarray(np.clip(pushed, -1.0, 1.0))
