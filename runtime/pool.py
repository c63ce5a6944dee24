"""A pool: one model, several streams, each with a memory of its own, stepped in one call.

with Pool.open("build/pool") as pool:
    row = pool.join()
    action = pool.step(z=observations)["action"][row]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np

from stategate.contract import Bundle, ObservationContract
from stategate.contract.arguments import checks_kinds
from stategate.contract.claims import Observes, check_caller
from stategate.contract.errors import (
    EngineError,
    PoolFault,
    PoolFullError,
    SpecError,
    StepInputError,
)
from stategate.contract.sessions import check_rows
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.base.clock import Clock, MonotonicClock
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.resident import watch_resident
from stategate.runtime.deadline import IdleReset
from stategate.runtime.engines.engine import Engine, EngineChoice, Resident, open_engine
from stategate.runtime.engines.feeds import RowFeeds
from stategate.runtime.engines.open_bundle import OpenBundle
from stategate.runtime.engines.opening import allocate, check_memory, check_pool_budget
from stategate.runtime.engines.prologue import PrologueRunner
from stategate.runtime.keep.policy import Restored
from stategate.runtime.keep.pool_rows import RowStore
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.state_files import States, read_states, write_states
from stategate.runtime.keep.store import OnDamage
from stategate.runtime.memory.pool_rows import RowMemory
from stategate.runtime.trust.accepted import accepted
from stategate.runtime.trust.policy import Trust

# An engine's parity mask: every state is read from its first bank and written to its second.
_FIRST_BANKS = 0


class Pool(OpenBundle):
    """Steps a bundle that was exported with ``--sessions``: one row, one session.

    Nothing that one session does changes a bit of another. Not thread-safe. Make one with
    `Pool.open`.
    """

    def __init__(self, bundle: Bundle, buffers: Buffers, engine: Engine, clock: Clock) -> None:
        capacity = bundle.manifest.sessions
        self._memory = RowMemory(buffers, bundle.manifest.outputs, capacity)
        # The engine computes every row; what a caller sees are copies of the stepped ones.
        shown = self._memory.shown
        outputs = {slot.name: shown[slot.name] for slot in buffers.outputs}
        gates = {slot.name: shown[slot.name] for slot in buffers.gates}
        super().__init__(bundle, engine, outputs, gates)
        self._counters = self._memory.counters
        self._store = RowStore(Codec(bundle.manifest, bundle.digest), self._memory)
        self._joined = np.zeros(capacity, dtype=bool)
        self._stepped = np.zeros(capacity, dtype=bool)
        self._feeds = RowFeeds(buffers.inputs, self._stepped)
        self._resident = watch_resident(bundle.manifest.budget)
        self._rules = rules = (bundle.manifest.observation or ObservationContract()).resets
        self._idle: list[IdleReset] = []
        self._prologue = PrologueRunner(bundle)
        if rules.idle_seconds is not None:
            for row in range(capacity):
                begin = partial(self._memory.begin, row)
                fault = partial(self._counters.add_in, row, "clock_faults")
                self._idle.append(IdleReset(rules.idle_seconds, clock, begin, fault))

    @property
    def engine_name(self) -> str:
        """Engine and version."""
        return self._open_engine().name

    @classmethod
    @checks_kinds
    def open(
        cls,
        path: str | Path | Bundle,
        engine: EngineChoice = "auto",
        *,
        clock: Clock | None = None,
        observes: Observes | None = None,
        rate_hz: float | None = None,
        black_box: object = None,
        trust: Trust | None = None,
    ) -> Pool:
        """Open a bundle: check every digest, allocate every buffer, load the engine.

        Args:
            path: The bundle, or its folder; one for a single session makes a pool of one row.
            engine: As in `Session.open`.
            clock: Source of time for the reset rule of a row that is idle.
            observes: As in `Session.open`.
            rate_hz: As in `Session.open`.
            trust: As in `Session.open`.
            black_box: None: a pool has no black box.

        Raises:
            SpecError: A tensor of the bundle has no row for each session, its budget limits what a
                pool does not keep, or the caller hands over something else than the bundle takes.
            StategateError: Anything else that `Session.open` raises.
        """
        if black_box is not None:
            raise SpecError("a pool has no black box", remedy="Session.open(path, black_box=...)")
        bundle = Bundle.open(path)
        accepts = accepted(bundle, trust)
        check_caller(bundle.manifest, observes, rate_hz)
        # Only one that was made for a single session can lack rows.
        verb = "adopt" if bundle.manifest.model.family == "adopted" else "export"
        remedy = f"step it with Session.open, or {verb} the model again with --sessions"
        check_rows(bundle.manifest.step, bundle.manifest.sessions, remedy)
        check_memory(bundle, bundle.manifest.budget, engine)
        check_pool_budget(bundle.manifest.budget)
        buffers = allocate(bundle)
        # Rows have gates of their own: nearly every step of a pool writes somewhere.
        opened = open_engine(bundle, buffers, bundle.manifest.step_graph, engine, accepts)
        if isinstance(opened, Resident):
            opened.close()
            raise SpecError("a pool cannot step with tensorrt", expected="onnxruntime or native")
        try:
            return cls(bundle, buffers, opened, clock or MonotonicClock())
        except BaseException:
            opened.close()
            raise

    @property
    def capacity(self) -> int:
        """How many sessions fit: the leading axis of every tensor."""
        return len(self._joined)

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that a session has joined, in ascending order."""
        return tuple(row for row, joined in enumerate(self._joined) if joined)

    def join(self) -> int:
        """Give the lowest free row to a new session, with initial states and an empty ledger.

        Returns:
            The row, from 0 to ``capacity - 1``.

        Raises:
            PoolFullError: Every row is taken.
        """
        self._open_engine()
        for row, joined in enumerate(self._joined):
            if not joined:
                self._memory.begin(row)
                self._counters.clear(row)
                self._store.forget(row)
                self._joined[row] = True
                if self._idle:
                    self._idle[row].forget()
                return row
        raise PoolFullError(
            "the pool is full",
            found=f"{self.capacity} sessions in {self.capacity} rows",
            remedy="let one leave, or make the bundle again with more --sessions",
        )

    def leave(self, row: int) -> Ledger:
        """End the session of a row and free the row.

        Returns:
            Its last ledger.

        Raises:
            StepInputError: No session has joined this row.
        """
        ledger = self.ledger(row)
        self._joined[row] = False
        return ledger

    def reset(self, row: int) -> None:
        """Put every state of a row back to its initial value: an episode begins in it.

        Its counters go on. Its outputs are the declared safe ones until its next step, or zeros.

        Raises:
            StepInputError: No session has joined this row.
        """
        self._open_engine()
        self._memory.begin(self._checked(row))

    def ledger(self, row: int) -> Ledger:
        """The counters of the session in a row as they stand.

        Raises:
            StepInputError: No session has joined this row.
        """
        return self._counters.read(self._checked(row))

    def state(self, row: int, name: str) -> Array:
        """A copy of one state of one row as the next step will see it.

        Returns:
            ``(1, ...)``, the shape that it has in a bundle for one session.

        Raises:
            StepInputError: No session has joined this row, or there is no state of that name.
        """
        self._checked(row)
        return self._memory.view(row, name).copy()

    def load_state(self, row: int, states: States) -> None:
        """Begin an episode in a row from given states, as `state` gave them; counted as a reset.

        Everything is checked before anything is changed.

        Args:
            row: A row that a session has joined.
            states: One array ``(1, ...)`` for each state of the manifest, or a safetensors file.

        Raises:
            StepInputError: No session has joined this row; or a state is missing, unknown, of the
                wrong shape or dtype, or not finite.
            SnapshotError: The file is damaged, or says that it is of another memory.
            RuntimeFault: The pool was closed.
        """
        self._open_engine()
        self._memory.begin(self._checked(row), read_states(states, self._bundle))

    def begin(self, row: int, /, **inputs: Array) -> None:
        """Begin an episode in a row with the bundle's prologue; see `Session.begin`.

        Args:
            row: A row that a session has joined.
            **inputs: One array for each input of ``manifest.prologue``.
        """
        self._open_engine()
        states = self._memory.initial(self._checked(row)) | self._prologue.states(inputs)
        self._memory.begin(row, states)

    def save_state(self, row: int, path: str | Path) -> None:
        """Write the states of one row to a safetensors file, as `Session.save_state` does.

        Args:
            row: A row that a session has joined.
            path: The file; one that is there is replaced, whole or not at all.

        Raises:
            StepInputError: No session has joined this row.
            ResultError: The file cannot be written.
        """
        self._open_engine()
        states = {name: self.state(row, name) for name in self._memory.names}
        count = partial(self._counters.add_in, row, "persisted_bytes")
        write_states(path, states, self._bundle, count)

    def save(self, row: int, folder: str | Path, on_damage: OnDamage = "raise") -> int:
        """Write a snapshot of one row: its states and its ledger; a `Session` can take it back.

        What others counted in the folder is added to the row's ledger first: it has one history.

        Args:
            row: A row that a session has joined.
            folder: Of this session alone; made if it is not there.
            on_damage: What happens where there are snapshots and none can be read: ``raise``, or
                ``fresh``, which puts the damaged file aside; see `SnapshotPolicy`.

        Returns:
            The snapshot's sequence number.

        Raises:
            StepInputError: No session has joined this row.
            SnapshotError: The folder is in use, holds another memory or nothing that can be read,
                or cannot be written. The row is as it was; bytes that may have been written are
                counted.
            RuntimeFault: The pool was closed.
        """
        self._open_engine()
        states = {name: self.state(row, name) for name in self._memory.names}
        return self._store.save(row, states, folder, on_damage)

    def restore(
        self, row: int, folder: str | Path, on_damage: OnDamage = "raise"
    ) -> Restored | None:
        """Take back the newest good snapshot of a folder into one row, and its ledger.

        What others counted there since the row last saved or restored is added.

        Args:
            row: A row that a session has joined.
            folder: Where `save` of a pool or a session wrote.
            on_damage: As in `save`.

        Returns:
            What was taken and why, or None where no snapshot was ever written, or none can be
            read and ``on_damage`` is ``fresh``.

        Raises:
            StepInputError: No session has joined this row.
            SnapshotError: Nothing in the folder can be used. Nothing was changed.
            RuntimeFault: The pool was closed.
        """
        self._open_engine()
        return self._store.restore(self._checked(row), folder, on_damage)

    def step(self, /, rows: Iterable[int] | None = None, **inputs: Array) -> Mapping[str, Array]:
        """One step of the model, for all sessions or for some.

        Rows that are not stepped keep every byte of their states, outputs, gates and counters;
        what the inputs hold there is not looked at.

        Args:
            rows: Rows to step, each joined by a session; all that are when None.
            **inputs: One array for each input of the manifest, of its shape (with a row for every
                session) and dtype. Copied in; nothing of the caller's is kept.

        Returns:
            Outputs by name, ``(capacity, ...)``. The mapping and its arrays are the same objects
            after every step: the next step of a row overwrites them.

        Raises:
            StepInputError: A row is not joined, or an input is missing, unknown, of the wrong
                shape or dtype, or not finite in a stepped row; no row has changed.
            EngineError: The engine failed; no row has changed.
            PoolFault: A gate, a next state or an output of some rows is not finite; these were
                refused and keep the outputs of their last good step, all others were committed.
            RuntimeFault: The pool was closed.
        """
        engine = self._open_engine()
        self._memory.settle()
        some = self._choose(rows)
        for idle in compress(self._idle, self._stepped):
            idle.look()
        initial = self._prologue.prologue is not None and self._memory.is_initial & self._stepped
        if np.any(initial):
            raise self._prologue.not_begun("pool.begin(row, ")
        self._feeds.take(inputs)
        if not some:
            return self._outputs
        try:
            engine.run(_FIRST_BANKS)
        except EngineError:
            self._counters.add("faults", self._stepped)
            raise
        refused = self._memory.commit(self._stepped)
        if refused:
            if self._rules.on_fault:
                for row in refused:
                    self._memory.begin(row)
            raise _fault(refused, self._rules.on_fault)
        if self._resident is not None:
            self._resident.step()
        return self._outputs

    def _choose(self, rows: Iterable[int] | None) -> bool:
        """Fill the mask of stepped rows; whether it names any."""
        if rows is None:
            np.copyto(self._stepped, self._joined)
        else:
            self._stepped.fill(False)
            for row in rows:
                self._stepped[self._checked(row)] = True
        return bool(self._stepped.any())

    def _checked(self, row: int) -> int:
        self._memory.settle()  # what an exception of the caller's own interrupted
        is_row = isinstance(row, (int, np.integer)) and not isinstance(row, bool)
        if not (is_row and 0 <= row < self.capacity and self._joined[row]):
            raise StepInputError(
                "no session has joined this row",
                found=f"row {row!r}",
                expected=f"one of {', '.join(map(str, self.rows))}" if self.rows else "no row yet",
                remedy="use the row that join() gave",
            )
        return int(row)


def _fault(refused: Mapping[int, str], reset: bool) -> PoolFault:
    rows = tuple(sorted(refused))
    return PoolFault(
        "rows of the pool hold NaN or Inf; their writes were refused, all others were committed",
        rows=rows,
        found="; ".join(f"{refused[row]} in row {row}" for row in rows),
        remedy="every state of these rows is at its initial value: go on"
        if reset
        else "these rows have the state before this step: go on, or call reset(row)",
    )
