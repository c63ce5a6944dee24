"""Recording what a live session is given, as episodes, without getting into its way.

with Session.open("build/aura") as session, Recorder(session, "recordings", rate_hz=50) as robot:
    for observation in sensors:
        action = robot.step(z=observation)["action"]
print(robot.recorded)

Steps are kept in one of two blocks of memory; a full one is written by a thread of the recorder's
own while the other fills. A disk that is full or slow costs recordings, never a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from stategate.contract import Episode, ObservationContract
from stategate.contract.claims import check_loop_rate
from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError, SpecError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.keep.state_files import States
from stategate.runtime.session import Session

BLOCK_STEPS = 4096
Beginning = dict[str, dict[str, Array]]
"""Arrays by the part of an episode that says how it begins."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recorder has done."""

    steps: int  # steps that are in files
    waiting_steps: int  # steps that are in memory yet
    lost_steps: int  # steps that could not be kept
    files: int
    bytes: int  # their size; a flash medium is worn by them
    problem: str | None  # why steps were lost, in words; None where none were


class Recorder(Closeable):
    """Steps a session and keeps its inputs.

    Only steps that the session took are kept: one that raised for its shape, a NaN or a fault
    changed no state, so that the recording, stepped again, ends in the same memory.

    Args:
        session: The live session; `step` is called here instead of there.
        folder: Where ``<name>-000000.npz`` and so on go; existing files are never replaced.
        steps: Of one file. Memory is that of two blocks of so many steps, and one file.
        rate_hz: Steps per second, for the files; that of the bundle where it is None.
        name: What files are called.
        max_bytes: Write no more than so much.
        on_loss: ``count`` goes on and keeps account in `recorded`; ``raise`` raises once, after
            the step at which the loss is known was taken.
        wait_for_disk: Where nothing steps in real time: wait for a disk that is busy instead of
            losing a block.

    Raises:
        SpecError: A policy does not exist, or a limit is not positive.
        EpisodeError: ``rate_hz`` is not positive.
        ResultError: The folder cannot be made.
    """

    def __init__(
        self,
        session: Session,
        folder: str | Path,
        *,
        steps: int = BLOCK_STEPS,
        rate_hz: float | None = None,
        name: str = "part",
        max_bytes: int | None = None,
        on_loss: Literal["count", "raise"] = "count",
        wait_for_disk: bool = False,
    ) -> None:
        if steps < 1 or on_loss not in ("count", "raise"):
            raise SpecError(
                "a recorder cannot be so",
                found=f"steps {steps}, on_loss {on_loss}",
                expected="1 step or more; count or raise",
            )
        Episode({}, rate_hz=rate_hz)  # refuses a wrong rate
        contract = session.manifest.observation or ObservationContract()
        if rate_hz is None:
            rate_hz = contract.rate_hz
        else:
            check_loop_rate(contract, rate_hz)
        self._session = session
        self._folder = Path(folder)
        self._rate_hz = rate_hz
        self._name = name
        self._max_bytes = max_bytes
        self._raises = on_loss == "raise"
        self._waits = wait_for_disk
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except failures(OSError) as problem:
            raise ResultError("recordings cannot go there", found=problem) from problem
        specs = session.manifest.step.inputs
        self._filling, self._spare = (
            {spec.name: np.zeros((steps, *spec.shape), spec.dtype) for spec in specs}
            for _ in range(2)
        )
        self._size = steps
        self._at = self._first = self._index = 0
        self._written_steps = self._lost = self._files = self._bytes = 0
        self._problem: str | None = None
        self._beginning: Beginning = {}
        self._fresh = False
        self._warned = False
        self._thread = ThreadPoolExecutor(1, "stategate-recorder")
        self._writing: tuple[int, Future[int]] | None = None

    @property
    def recorded(self) -> Recorded:
        """The account as it stands."""
        in_thread = self._writing[0] if self._writing is not None else 0
        return Recorded(
            self._written_steps,
            self._at + in_thread,
            self._lost,
            self._files,
            self._bytes,
            self._problem,
        )

    def step(self, /, **inputs: Array) -> Mapping[str, Array]:
        """`Session.step`, and keep its inputs.

        Raises:
            ResultError: Steps were lost, under the policy ``raise``; this step is committed.
            StategateError: Whatever the session raises.
        """
        before = self._session.committed_steps
        try:
            outputs = self._session.step(**inputs)
        finally:  # an error may come from a step that was taken
            if self._session.committed_steps != before:
                self._keep(inputs)
        if self._problem is not None and self._raises and not self._warned:
            self._warned = True
            raise ResultError("steps were not recorded", found=self._problem)
        return outputs

    def load_state(self, states: States) -> None:
        """`Session.load_state`, and begin a file that says from which states it starts.

        Raises:
            StategateError: Whatever the session raises; nothing has changed then.
        """
        self._session.load_state(states)
        self.cut()
        names = (state.name for state in self._session.manifest.states)
        self._beginning = {"start": {name: self._session.state(name) for name in names}}

    def begin(self, /, **inputs: Array) -> None:
        """`Session.begin`, and begin a file that says what the prologue was given.

        Raises:
            StategateError: Whatever the session raises; nothing has changed then.
        """
        self._session.begin(**inputs)
        self.cut()
        self._beginning = {"prologue": {name: array.copy() for name, array in inputs.items()}}

    def cut(self, *, fresh: bool = False) -> None:
        """End the file here; the next step begins another, with a fresh memory where that is said.

        Waits for the disk.
        """
        self._settle(wait=True)
        self._queue_file()
        self._fresh = fresh

    def close(self) -> None:
        """Write what is in memory, wait for the disk, end the thread; the session stays open."""
        self.cut()
        self._settle(wait=True)
        self._thread.shutdown()

    def _keep(self, inputs: Mapping[str, Array]) -> None:
        at = self._at
        for name, array in inputs.items():
            self._filling[name][at] = array
        self._at = at + 1
        if self._at == self._size:
            self._settle(wait=self._waits)
            self._queue_file()

    def _queue_file(self) -> None:
        """Give the block to the thread, or lose it where the last one is still on its way."""
        count, first = self._at, self._first
        self._at, self._first = 0, first + count
        if count == 0:
            return
        beginning, self._beginning = self._beginning, {}
        fresh, self._fresh = self._fresh, False
        if self._writing is not None:
            self._lose(count, "the disk was still busy with the block before")
        elif self._max_bytes is not None and self._bytes >= self._max_bytes:
            self._lose(count, f"{self._max_bytes:,} bytes are written, and no more may be")
        else:
            full, self._filling, self._spare = self._filling, self._spare, self._filling
            self._writing = (
                count,
                self._thread.submit(self._write, full, count, first, beginning, fresh),
            )

    def _settle(self, wait: bool) -> None:
        """Account for the block in the thread, if it is done or ``wait`` says to wait for it."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return
        (count, future), self._writing = self._writing, None
        problem = future.exception()
        if problem is not None:
            self._lose(count, f"{type(problem).__name__}: {problem}")
            return
        self._written_steps += count
        self._files += 1
        self._bytes += future.result()

    def _lose(self, count: int, problem: str) -> None:
        self._lost += count
        self._problem = problem

    def _write(
        self,
        block: Mapping[str, Array],
        count: int,
        first: int,
        beginning: Beginning,
        fresh: bool,
    ) -> int:
        """In the thread: one whole file, under the next name that is free."""
        session = self._session
        episode = Episode(
            {name: array[:count] for name, array in block.items()},
            rate_hz=self._rate_hz,
            provenance=f"{session.manifest.model.name}, bundle {session.bundle_digest[:12]}, "
            f"steps {first} to {first + count - 1} of a live session",
            start=beginning.get("start", {}),
            prologue=beginning.get("prologue", {}),
            resets=(0,) * fresh,
        )
        while (path := self._folder / f"{self._name}-{self._index:06d}.npz").exists():
            self._index += 1
        raw = episode.to_bytes()
        write_whole(path, raw)
        return len(raw)
