"""A second bundle that steps beside the acting one, in a thread; nobody acts on its answers.

The acting thread hands over copies of inputs and answers. It waits for the shadow only where 256
steps have piled up: 10 ms in one step and a second in all, and then the shadow has failed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import numpy as np

from stategate.contract.errors import StategateError
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.gaps import gap_of
from stategate.runtime.session import Session

AHEAD = 256  # steps that may wait for the shadow
_WAIT_S, _WAITS_S = 0.01, 1.0  # that the acting thread waits in one step, and in all


class Shadow:
    """A session in a thread of its own.

    Attributes:
        session: What steps there; None until it is open.
        steps: Steps that it took.
        problem: Why the shadow has ended, in words; None while it goes on.
        has_begun: Whether it has a memory, and takes steps.
    """

    def __init__(self, opens: Callable[[], Session]) -> None:
        """Open a session in a thread.

        Args:
            opens: Called there.
        """
        self.session: Session | None = None
        self.problem: str | None = None
        self.steps, self.has_begun, self._unjudged = 0, False, 0
        self._opens = opens
        self._gaps: dict[str, float] = {}
        self._units: dict[str, float] = {}
        self._room, self._left_s = threading.Semaphore(AHEAD), _WAITS_S
        self._queue: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stategate-shadow", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, session: Session) -> Shadow:
        """The shadow of a session that acted until now, and goes on from where it is."""
        shadow = cls(lambda: session)
        shadow.session, shadow.has_begun = session, True
        return shadow

    @property
    def is_alive(self) -> bool:
        """Whether its thread goes on."""
        return self._thread.is_alive()

    @property
    def difference(self) -> float:
        """Largest difference of an output, in units of the largest magnitude that it reached."""
        pairs = [(gap, self._units[name]) for name, gap in list(self._gaps.items())]
        return max((gap / unit if unit else math.inf for gap, unit in pairs if gap), default=0.0)

    def begin(
        self,
        states: Mapping[str, Array] | None,
        unjudged: int = 0,
    ) -> None:
        """Begin an episode there too, from states or from the initial ones.

        Args:
            states: By name.
            unjudged: Steps after it that are not compared, while a memory fills.
        """
        self.has_begun, self._unjudged = True, max(unjudged, self._unjudged)
        self._give(self._begin, states)

    def begin_by_prologue(self, inputs: Mapping[str, Array]) -> None:
        """Begin an episode there too, by the bundle's prologue."""
        self.has_begun = True
        self._give(self._begin_by_prologue, _copied(inputs))

    def step(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        budget: tuple[bool, float] | None,
    ) -> None:
        """Step there too, and compare; the arrays are copied.

        Args:
            inputs: By name.
            outputs: What the acting session answered.
            budget: What its step found of the write budget, so that both hold back the same steps
                however far behind the shadow is.
        """
        self._give(self._step, _copied(inputs), _copied(outputs), budget)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call something in the thread, after what waits."""
        self._give(function, *arguments)

    def wait(self) -> None:
        """Wait until nothing waits."""
        done = threading.Event()
        self._give(done.set)
        while self._thread.is_alive() and not done.wait(_WAIT_S):
            pass

    def close(self) -> Session | None:
        """End the thread after what waits; the session, where it is open and without a problem."""
        self._queue.put((_end, ()))
        self._thread.join()
        return self.session

    def abandon(self) -> None:
        """Let the thread end, and free its session, while the acting one steps on."""
        self.problem = self.problem or "it was abandoned"
        self._queue.put((_wake, ()))

    def _give(self, call: Callable[..., object], *arguments: Any) -> None:
        if not self._room.acquire(blocking=False):
            start = time.monotonic()
            has_room = self._left_s > 0 and self._room.acquire(timeout=_WAIT_S)
            self._left_s -= time.monotonic() - start
            if not has_room:
                self.problem = f"it is {AHEAD} steps behind, and cannot keep pace"
        if self.problem is None:
            self._queue.put((call, arguments))

    def _run(self) -> None:
        try:
            self.session = self._opens()
            while self.problem is None:
                call, arguments = self._queue.get()
                call(*arguments)
                self._room.release()
        except StategateError as problem:
            self.problem = problem.reason
        except _Ended:
            return  # whoever asked for it takes the session
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def _begin(self, states: Mapping[str, Array] | None) -> None:
        assert self.session is not None
        if states is None:
            self.session.reset()
        else:
            self.session.load_state(states)

    def _begin_by_prologue(self, inputs: Mapping[str, Array]) -> None:
        assert self.session is not None
        self.session.begin(**inputs)

    def _step(
        self,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        budget: tuple[bool, float] | None,
    ) -> None:
        assert self.session is not None
        if budget is not None:
            self.session.follow(*budget)
        answers = self.session.step(**inputs)
        self.steps += 1
        if self.steps <= self._unjudged:
            return
        for name, reference in outputs.items():
            gap, magnitude = gap_of(answers[name], reference)
            self._units[name] = max(self._units.get(name, 0.0), magnitude)
            self._gaps[name] = max(self._gaps.get(name, 0.0), gap)


class _Ended(Exception):
    """The thread is asked to end."""


def _end() -> None:
    raise _Ended


def _wake() -> None:
    """Let the thread look whether there is a problem."""


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}
