"""A robot that is shown its goal, has to wait, and then has to go there; for any body.

An episode is `CUE` steps in which the goal is shown, ``hold`` idle steps, and then up to the body's
limit of steps in which it moves. Until then its brakes are on: the simulator is stepped with no
action. The goal is in no observation after the first `CUE`, so a policy that goes there remembers.
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from stategate.contract.errors import EpisodeError

Numbers = NDArray[np.float64]

CUE = 5
"""Steps that show the goal."""
NOISE = 2e-3
"""Standard deviation of every sensor, the one of the goal included."""

AT_REST = 1e-6
"""A held robot none of whose sensors changes by more than this in a step, a two-thousandth of the
noise, stands still; from then on the simulator waits with it."""


class Body(Protocol):
    """A simulated robot with a goal.

    Attributes:
        name: Of the task.
        sensors: Numbers that it senses of itself.
        cue: Numbers that describe a goal.
        actions: Numbers that move it, each in -1 to 1.
        limit: Control steps that it has for going there.
    """

    name: str
    sensors: int
    cue: int
    actions: int
    limit: int

    def start(self, seed: int, goal: int) -> Numbers:
        """Begin anew; the goal as it is shown, ``(cue,)``, in -1 to 1.

        Args:
            seed: Of where the robot stands.
            goal: Seed of the goal; where it stands does not depend on it.
        """
        ...

    def sense(self) -> Numbers:
        """Where it is and how fast, ``(sensors,)``, about -1 to 1; nothing of the goal."""
        ...

    def move(self, action: Numbers) -> bool | None:
        """One control step; whether the goal was reached or missed for good, None for neither."""
        ...

    def expert(self) -> Numbers:
        """The action ``(actions,)`` of one who knows the goal."""
        ...


def not_installed(simulator: str) -> EpisodeError:
    """What is said where a body's simulator is missing."""
    return EpisodeError(
        "the robot's simulator is not installed",
        found=f"no module {simulator}",
        remedy="make evidence-robot installs it into a folder of its own",
    )


class HeldRobot(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observations are ``[sensors, cue or zeros, 1 when it may move]``, every one of them noisy.

    ``reset`` takes ``options={"hold": steps, "goal": seed}``, both optional: no hold, and the goal
    of the episode's seed. ``info`` has ``go``, and at the end ``success``.

    Args:
        body: The simulated robot.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        size = body.sensors + body.cue + 1
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (body.actions,), np.float32)
        self._still = np.zeros(body.actions)
        self._goal = np.zeros(body.cue)
        self._hold = self._done = 0
        self._resting = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Raises:
            EpisodeError: The hold is no number of steps.
        """
        seed = 0 if seed is None else seed
        chosen = options or {}
        self._hold, self._done = chosen.get("hold", 0), 0
        if not isinstance(self._hold, int) or self._hold < 0:
            raise EpisodeError(
                "a hold is a number of steps", found=repr(self._hold), expected="0 or more"
            )
        self._resting = False
        self._noise = np.random.default_rng((seed, 1))
        self._goal = self.body.start(seed, chosen.get("goal", seed))
        return self._observed(), {"go": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One control step; what the policy wants counts once it may go."""
        outcome = None
        if self.going:
            outcome = self.body.move(np.asarray(action, np.float64))
        elif not self._resting:
            self._wait()
        self._done += 1
        late = self._done >= CUE + self._hold + self.body.limit
        info = {"go": self.going, "success": outcome is True}
        return self._observed(), float(outcome is True), outcome is not None, late, info

    @property
    def going(self) -> bool:
        """Whether the brakes are off."""
        return self._done >= CUE + self._hold

    def _wait(self) -> None:
        before = self.body.sense()
        self.body.move(self._still)
        self._resting = bool(np.abs(self.body.sense() - before).max() <= AT_REST)

    def _observed(self) -> NDArray[np.float32]:
        cue = self._goal if self._done < CUE else np.zeros_like(self._goal)
        whole = np.concatenate([self.body.sense(), cue, [float(self.going)]])
        return (whole + NOISE * self._noise.standard_normal(whole.size)).astype(np.float32)
