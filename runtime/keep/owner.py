"""What a session does with its memory besides stepping it: begin, hand over, save, take back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import SupportsIndex, TypeVar

from stategate.contract import Budget
from stategate.contract.errors import (
    EngineError,
    PersistBudgetError,
    SnapshotError,
    SpecError,
    StepInputError,
)
from stategate.contract.rings import check_form
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.base.clock import Clock
from stategate.runtime.base.ledger import Counters
from stategate.runtime.base.real_time import Hold, RealTime
from stategate.runtime.engines.feeds import check_states
from stategate.runtime.engines.open_bundle import OpenBundle
from stategate.runtime.engines.prologue import PrologueRunner
from stategate.runtime.keep.box_writer import BlackBoxWriter
from stategate.runtime.keep.keeper import Keeper
from stategate.runtime.keep.policy import Restored, SnapshotPolicy
from stategate.runtime.keep.replay import Replay
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.state_files import States, read_states, write_states
from stategate.runtime.memory.answers import Answers
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.governor import Balance, Governor
from stategate.runtime.memory.health import Health, HealthMonitor
from stategate.runtime.memory.statistics import Taps

_Self = TypeVar("_Self", bound="MemoryOwner")


class MemoryOwner(OpenBundle):
    """An open bundle with one memory, and perhaps a folder for its snapshots."""

    _buffers: Buffers
    _memory: Memory
    _counters: Counters
    _governor: Governor | None
    _budget: Budget
    _clock: Clock
    _prologue: PrologueRunner
    _keeper: Keeper | None
    _black_box: BlackBoxWriter | None = None
    _answers: Answers | None = None
    _real_time: Hold | None = None
    _health: HealthMonitor | None = None

    @property
    def not_in_real_time(self) -> tuple[str, ...] | None:
        """What of ``realtime=`` could not be had, each with its remedy; None where nobody asked."""
        return self._real_time.lacks if self._real_time is not None else None

    def _in_real_time(self: _Self, wishes: RealTime | bool) -> _Self:
        """Ask for it, and touch what a step touches: what is computed here is never committed."""
        if not wishes:
            return self
        try:
            wish = RealTime() if isinstance(wishes, bool) else wishes
            self._real_time = Hold(wish)
            engine, parity = self._open_engine(), self._memory.parity
            with suppress(EngineError, StepInputError):  # zeros may be no input that it can step
                for _ in range(wish.warm_up):
                    engine.run(parity)
                    engine.write(parity)
            for slot in (*self._buffers.outputs, *self._buffers.gates):
                slot.array.fill(0)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """See `OpenBundle.close`."""
        if self._real_time is not None:
            self._real_time.release()
        super().close()

    @property
    def health(self) -> Health | None:
        """What the last windows of the stream say; None where the bundle has no envelope."""
        return self._health.state() if self._health is not None else None

    def taps(self) -> Taps:
        """Where the numbers lie that a health envelope may be about."""
        return Taps(self._buffers)

    @property
    def black_box(self) -> BlackBoxWriter | None:
        """What records it: the number of the last step, steps lost and why; None without one."""
        return self._black_box

    @property
    def snapshot_problem(self) -> str | None:
        """What in the snapshot folder could not be used at the last look; None where all could."""
        return self._keeper.problem if self._keeper is not None else None

    @property
    def committed_steps(self) -> int:
        """Steps since it was opened that neither failed nor were refused."""
        return self._memory.committed

    @property
    def chain(self) -> int:
        """64 bits that stand for all states after each step since it was opened, in their order.

        Two sessions with the same chain had the same bits in every step; `stategate_chain` gives
        it in C. Steps that failed are not in it, and neither are resets; see
        `stategate.contract.chain` for what it cannot tell.

        Raises:
            SpecError: The session was opened without one.
        """
        self._memory.chain_up()
        if self._memory.chain is None:
            raise SpecError(
                "this session keeps no chain of hashes", remedy="Session.open(path, chain=True)"
            )
        return self._memory.chain

    @property
    def budget(self) -> Budget:
        """The limits in force: the manifest's, tightened by the caller."""
        return self._budget

    def state(self, name: str) -> Array:
        """A copy of one state as the next step will see it.

        Raises:
            StepInputError: There is no state of that name.
        """
        live = self._memory.live()
        if name not in live:
            raise StepInputError(f"there is no state {name!r}", expected=", ".join(live))
        return live[name].copy()

    def reset(self) -> None:
        """Put every state back to its initial value: an episode begins. Counters go on."""
        self._open_engine()
        self._memory.begin()

    @property
    def rewindable_steps(self) -> int:
        """How many steps `rewind` can take back now; 0 where it can take none."""
        rings = self._memory.rings
        return rings.position[1] if rings is not None else 0

    def rewind(self, steps: SupportsIndex) -> None:
        """Take back the last steps: the memory is, bit for bit, as if they had never been.

        The ledger goes on: steps that were taken back stay counted, and count as `rewound_steps`
        too. Outputs and gates that the session shows stay those of the last step.

        Args:
            steps: How many; no more than the rings hold since the last fold, and none before the
                last reset or restore.

        Raises:
            SpecError: So many steps are not kept; the session was not opened with ``rewind=True``,
                or the bundle is not in deferred form.
        """
        self._open_engine()
        self._memory.rewind(steps)

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Look ahead: at the end the memory is, bit for bit, what it was at the beginning.

            with session.branch():
                ahead = [session.step(x=x)["y"].copy() for x in plan]

        For every bundle; all states are copied when it begins. Steps in it count in the ledger, in
        budgets and as `rewound_steps`; nothing of it is saved by a policy, or judged by a health
        envelope. Branches may be nested.
        Steps before it cannot be taken back after it.

        Raises:
            SnapshotError: Within it, by `save`.
            SpecError: The session has a black box, which would not know that it was a branch.
        """
        self._open_engine()
        if self._black_box is not None:
            raise SpecError("a black box does not record that steps are taken back")
        with ExitStack() as stack:
            if self._keeper is not None:
                stack.enter_context(self._keeper.pause())
            if self._answers is not None:
                stack.enter_context(self._answers.branch())
            if self._health is not None:
                stack.enter_context(self._health.pause())
            stack.enter_context(self._memory.branch())
            yield

    def load_state(self, states: States) -> None:
        """Begin an episode from given states, such as those of an encoder; counted as a reset.

        Everything is checked before anything is changed. As with a reset, no written bytes count.

        Args:
            states: One array for each state of the manifest, as `state` gives them; copied. Or a
                safetensors file of them, of `save_state` or of another program.

        Raises:
            StepInputError: A state is missing, unknown, of the wrong shape or dtype, or not finite.
            SnapshotError: The file is damaged, or says that it is of another memory.
        """
        self._open_engine()
        arrays = read_states(states, self._bundle)
        check_form(arrays, self._bundle.manifest.states)
        check_states(arrays, self._memory.live())
        self._memory.begin(arrays)

    def begin(self, /, **inputs: Array) -> None:
        """Begin an episode with the bundle's prologue, such as the encoder of a decoder.

        It runs once, in ONNX Runtime, and fills the states that it is for; the others get their
        initial values. Counted as a reset.

        Args:
            **inputs: One array for each input of ``manifest.prologue``.

        Raises:
            StepInputError: The bundle has no prologue; or an input, or a state that comes of it, is
                missing, unknown, of the wrong shape or dtype, or not finite. Nothing was changed.
            EngineError: The graph cannot be loaded, or failed.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        self._open_engine()
        states = self._memory.initial() | self._prologue.states(inputs)
        check_states(states, self._memory.live())
        self._memory.begin(states)

    def _check_begun(self) -> None:
        """Refuse to step a bundle with a prologue from states that nobody gave."""
        if self._prologue.prologue is not None and self._memory.is_initial:
            raise self._prologue.not_begun("session.begin(")

    def save_state(self, path: str | Path) -> None:
        """Write every state to a safetensors file, for `load_state` here or elsewhere.

        Its blocks count as `persisted_bytes`. Unlike `save`, it keeps neither ledger nor budgets.

        Args:
            path: The file; one that is there is replaced, whole or not at all.

        Raises:
            PersistBudgetError: The session has a wear budget, which knows snapshots alone.
            ResultError: The file cannot be written.
        """
        self._open_engine()
        if self._budget.persisted_limit_per_day is not None:
            raise PersistBudgetError(
                "a file of states would be written beside the wear budget",
                expected="a snapshot, which the budget counts",
                remedy="session.save(), with Session.open(path, snapshots='folder')",
            )
        write_states(path, self._memory.live(), self._bundle, self._counters.add_persisted)

    def _new_keeper(self, snapshots: SnapshotPolicy) -> Keeper:
        replay = Replay(self.bundle_digest, self._buffers, self._memory, self._open_engine())
        parts = (self._counters, self._memory, self._governor, replay)
        codec = Codec(self.manifest, self.bundle_digest)
        return Keeper(snapshots, self._budget, codec, self._clock, *parts)

    def keep_in(self, snapshots: SnapshotPolicy | None) -> None:
        """Let go of the snapshot folder, and keep this memory in another one from now on.

        The memory stays. The ledger goes on from that folder's, and budgets are what is left in
        its account. Not for a session with a black box.

        Raises:
            SnapshotError: As when a session is opened; it has no folder then.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()
        if snapshots is not None:
            keeper = self._new_keeper(snapshots)
            keeper.count_on()
            self._keeper = keeper

    @property
    def allowed(self) -> tuple[Balance, float] | None:
        """What the write budget allows at once, and what ``adapt`` adds; None without a budget.

        Setting gives nothing back that was used.
        """
        if self._governor is None:
            return None
        return self._governor.balance, self._governor.tokens[2]

    @allowed.setter
    def allowed(self, most: tuple[Balance, float] | None) -> None:
        if self._governor is not None and most is not None:
            self._governor.balance = most[0]
            self._governor.move_threshold(most[1])

    @property
    def budget_finding(self) -> tuple[bool, float] | None:
        """What the last step found: whether the write budget was used up, and what ``adapt`` adds.

        None without a budget.
        """
        return self._governor.finding if self._governor is not None else None

    def count_anew(self) -> None:
        """Let the ledger be zero now: what was stepped until now was tried, and did not act."""
        self._counters.begin_anew()

    def save(self) -> int | None:
        """Write a snapshot of states, counters and governor.

        Returns:
            Its sequence number, or None where the wear budget's policy ``hold`` skipped it.

        Raises:
            SnapshotError: No folder was given to `open`, it cannot be written, another session
                wrote to it, or nothing in it can be read and the policy is ``raise``.
            PersistBudgetError: The wear budget's policy is ``raise``.
        """
        return self._need_keeper().save()

    def restore(self) -> Restored | None:
        """Take back the newest good snapshot: states, counters, and the shift of ``adapt``.

        Everything is checked before memory is touched. A fresh session goes on counting where the
        folder stopped; one that already saved to or restored from it keeps its own counters,
        which only grow. Budgets live with the folder, and do not come back with a snapshot.

        Returns:
            What was taken and why; None without snapshots, or with damaged ones under ``fresh``.

        Raises:
            SnapshotError: No folder was given to `open`, it is gone, or nothing in it can be used
                (damaged, newer format, another model). Nothing was changed.
        """
        return self._need_keeper().restore()

    def _need_keeper(self) -> Keeper:
        self._open_engine()
        if self._keeper is None:
            raise SnapshotError(
                "this session has no snapshot folder",
                remedy="Session.open(path, snapshots='folder')",
            )
        return self._keeper
