"""A session: one model, one stream, one memory, stepped for ever.

with Session.open("build/aura") as session:
    for observation in robot:
        action = session.step(z=observation)["action"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from stategate.contract import Budget, Bundle, ObservationContract
from stategate.contract.arguments import checks_kinds
from stategate.contract.claims import Observes, check_caller, check_loop_rate
from stategate.contract.errors import (
    EngineError,
    RuntimeFault,
    SpecError,
    StateFault,
    WriteBudgetError,
)
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.base.clock import Clock, MonotonicClock
from stategate.runtime.base.ledger import Counters
from stategate.runtime.base.real_time import RealTime
from stategate.runtime.base.resident import watch_resident
from stategate.runtime.deadline import IdleReset, Loop, StepDeadline
from stategate.runtime.engines.engine import Engine, EngineChoice, Resident, open_engine
from stategate.runtime.engines.feeds import Feeds, FeedsOnceBegun
from stategate.runtime.engines.opening import allocate, check_memory, open_single
from stategate.runtime.engines.prologue import PrologueRunner
from stategate.runtime.keep.black_box import BlackBox
from stategate.runtime.keep.box_writer import BlackBoxWriter
from stategate.runtime.keep.policy import SnapshotPolicy, policy_of
from stategate.runtime.memory.answers import Answers
from stategate.runtime.memory.banks import Memory
from stategate.runtime.memory.governor import Governor
from stategate.runtime.memory.health import HealthChoice, monitor_for
from stategate.runtime.prefill import Prefill
from stategate.runtime.trust.accepted import accepted
from stategate.runtime.trust.policy import Trust
from stategate.runtime.watch.watched import WatchedOwner

FaultPolicy = Literal["raise", "hold", "reset", "rewind"]


class Session(WatchedOwner):
    """Steps a bundle and counts what its memory does.

    Not thread-safe: one session is one stream. Make one with `Session.open`.
    """

    def __init__(
        self,
        bundle: Bundle,
        buffers: Buffers,
        engine: Engine,
        budget: Budget,
        clock: Clock,
        snapshots: SnapshotPolicy | None,
        on_fault: FaultPolicy,
        chain: bool = False,
        black_box: BlackBox | None = None,
        rewind: bool = False,
        health: HealthChoice = "warn",
    ) -> None:
        super().__init__(
            bundle,
            engine,
            {slot.name: slot.array for slot in buffers.outputs},
            {slot.name: slot.array for slot in buffers.gates},
        )
        self._buffers, self._budget, self._clock = buffers, budget, clock
        self._on_fault, self._prologue = on_fault, PrologueRunner(bundle)
        self._counters = counters = Counters(buffers.groups)
        self._governor = None
        if budget.limits_writes:
            self._governor = Governor(budget, buffers.groups, buffers.constants, clock, counters)
        thresholds = self._governor.thresholds if self._governor is not None else None
        resident = engine if isinstance(engine, Resident) else None
        keeps_steps = rewind or on_fault == "rewind"
        self._memory = memory = Memory(buffers, counters, thresholds, resident, keeps_steps)
        rules = (bundle.manifest.observation or ObservationContract()).resets
        self._resets_on_fault = on_fault == "reset" or rules.on_fault
        if self._resets_on_fault:
            memory.after_fault = "every state is at its initial value: go on"
        if on_fault == "rewind":
            memory.prepare_retreat(rules.on_fault)
        idle = None
        if rules.idle_seconds is not None:
            idle = IdleReset(rules.idle_seconds, clock, memory.begin, counters.add_clock_fault)
        late = budget.deadline_ms is not None
        self._deadline = StepDeadline(budget, clock, counters, idle) if late or idle else None
        if on_fault != "raise":  # only the policies that answer after a fault pay for the copy
            self._answers = Answers(buffers.outputs, bundle.manifest.outputs, memory)
        self._keeper = self._new_keeper(snapshots) if snapshots is not None else None
        self._feeds = self._feeds_for(engine)
        self._resident = watch_resident(budget, counters.add_overrun)
        if chain or black_box is not None:
            memory.keep_chain(engine)
        if black_box is not None:
            rest = (buffers, memory, counters, self._governor, self._keeper, budget, engine.name)
            try:
                self._black_box = BlackBoxWriter(black_box, bundle, *rest)
            except BaseException:
                if self._keeper is not None:
                    self._keeper.close()
                raise
        by_step = any((self._answers, self._governor, late, memory.chain is not None))
        self._health = monitor_for(bundle.manifest, buffers, memory, counters, health)
        self._prefill = Prefill(bundle, buffers, memory, counters, budget, self._keeper, by_step)

    @classmethod
    @checks_kinds
    def open(
        cls,
        path: str | Path | Bundle,
        *,
        budget: Budget | None = None,
        snapshots: SnapshotPolicy | str | Path | None = None,
        black_box: BlackBox | str | Path | None = None,
        on_fault: FaultPolicy = "raise",
        clock: Clock | None = None,
        engine: EngineChoice = "auto",
        observes: Observes | None = None,
        rate_hz: float | None = None,
        chain: bool = False,
        rewind: bool = False,
        trust: Trust | None = None,
        realtime: RealTime | bool = False,
        health: HealthChoice = "warn",
    ) -> Session:
        """Open a bundle: check every digest, allocate every buffer, load the engine.

        Args:
            path: The bundle, or its folder.
            budget: Limits that tighten those of the manifest.
            snapshots: Folder for `save` and `restore`, or a policy that also saves by itself.
            black_box: File of fixed size for the last steps; see `stategate.replay`.
            on_fault: After a fault is counted and the old state is in place: ``raise`` it; ``hold``
                answers with the last good outputs of this episode; ``reset`` answers the same and
                begins an episode; ``rewind`` answers the same and takes back the last write, where
                it is kept. Before there are good outputs, all three answer with those that the
                manifest declares safe, or raise.
            clock: Source of time; tests replace it.
            engine: ``onnxruntime``, ``native``, ``tensorrt``, or ``auto`` for the faster one of the
                first two by the bundle's measurement. Of several separated by commas the first
                that loads is used, with a warning for each before it.
            observes: What the caller hands over: names of the elements in their order, names by
                input, an `ObservationContract`, or a JSON file of one. Compared with what the
                bundle was trained on.
            rate_hz: Steps per second of the caller's loop; compared too.
            chain: Keep a `chain` of hashes over all states after each step.
            rewind: Keep what it takes to take steps back; see `rewind`.
            trust: File with a public key, a certificate or a policy: the bundle is opened only if
                its signature is by one of these. With None no signature is asked for, and native
                code runs only if it was made on this machine or accepted by ``stategate trust``.
            realtime: Ask the system to keep a loop on time until `close`; a `RealTime` says how.
                What cannot be had is a `RealTimeWarning`, and stands in `not_in_real_time`.
            health: Where the bundle has an envelope: ``warn`` counts alarms and warns of the first,
                ``count`` only counts, ``off`` does not look.

        Raises:
            SpecError: The manifest is malformed, the budget is looser than it allows or contradicts
                the model, a policy does not exist or is not for this bundle, or the caller hands
                over something else than the bundle takes.
            MemoryBudgetError: The bundle needs more memory than it may; nothing was allocated.
            SnapshotError: The snapshot folder is in use, or belongs to another memory. Snapshots
                that cannot be read are no error, but a `SnapshotWarning`.
            BundleError: A file is missing or altered, or the bundle serves several sessions.
            TrustError: Nobody who is trusted signed it, or the policy refuses it.
            EngineError, MissingDependencyError: The graph cannot be loaded, or its engine.
        """
        if on_fault not in (policies := get_args(FaultPolicy)):
            raise SpecError("unknown fault policy", found=on_fault, expected=", ".join(policies))
        bundle = open_single(path)
        accepts = accepted(bundle, trust)
        check_caller(bundle.manifest, observes, rate_hz)
        limits = bundle.manifest.budget.tightened(budget or Budget())
        check_memory(bundle, limits, engine)
        buffers = allocate(bundle)
        if black_box is not None and not isinstance(black_box, BlackBox):
            black_box = BlackBox(black_box)
        clock = clock or MonotonicClock()
        opened = open_engine(bundle, buffers, choice=engine, accepts=accepts)
        try:
            parts = (limits, clock, policy_of(snapshots), on_fault, chain, black_box)
            session = cls(bundle, buffers, opened, *parts, rewind, health)
        except BaseException:
            opened.close()
            raise
        return session._in_real_time(realtime)

    def keep_in(self, snapshots: SnapshotPolicy | None) -> None:
        """See `MemoryOwner.keep_in`."""
        self._prefill.keeper = None
        super().keep_in(snapshots)
        self._prefill.keeper = self._keeper

    def replace_engine(self, wrap: Callable[[Engine, Buffers], Engine]) -> None:
        """Step with another engine from now on: ``wrap`` makes it from the present one."""
        self._memory.chain_up()  # by the engine that holds the states
        self._engine = wrap(self._open_engine(), self._buffers)
        self._prefill.by_step = True  # chunks have an engine of their own
        self._engine_name = self._engine.name
        self._feeds = self._feeds_for(self._engine)
        if self._memory.chain is not None:
            self._memory.keep_chain(self._engine)

    def _feeds_for(self, engine: Engine) -> Feeds:
        inputs = self._buffers.inputs
        if self.manifest.prologue is None:
            return Feeds(inputs, engine)
        return FeedsOnceBegun(inputs, engine, self._check_begun)

    def step(self, /, **inputs: Array) -> Mapping[str, Array]:
        """One step of the model.

        Inputs are copied in; nothing of the caller's is kept. After an error the state is the one
        before the call, unless the error says otherwise.

        Args:
            **inputs: One array for each input of the manifest, of its shape and dtype.

        Returns:
            Outputs by name. The mapping and its arrays are the same objects after every step:
            the next step overwrites them, so copy what must outlive it.

        Raises:
            StepInputError: An input is missing, unknown, of the wrong shape or dtype, or not
                finite.
            EngineError: The engine failed.
            StateFault: A gate, next state or output is not finite; the write was refused.
            WriteBudgetError: The write budget is used up and its policy is ``raise``.
            DeadlineError, MemoryBudgetError, PersistBudgetError: Another limit was passed, and its
                policy is ``raise``; the step is committed.
            SnapshotError: An automatic snapshot failed; the step is committed.
            RuntimeFault: The session was closed.
        """
        engine = self._engine or self._open_engine()  # no call where it is open
        memory, counters, governor = self._memory, self._counters, self._governor
        deadline, answers, black_box = self._deadline, self._answers, self._black_box
        if memory.chain is not None:
            memory.chain_up()
        start_ns = deadline.start() if deadline is not None else 0
        self._feeds.take(inputs)
        if governor is not None:
            governor.before(memory.is_full)
        if black_box is not None:
            black_box.before()
        if answers is not None:
            answers.keep()  # of the step before, if an exception of the caller's own came between
        try:
            finite = engine.run(memory.parity)
            opened = memory.open_gates(finite)
            asks = opened != [] or not memory.has_gates
            permitted = governor is None or governor.permits
            writes = asks and permitted
            if not permitted:
                opened = []
            if opened:
                engine.write(memory.parity)
            ungated = memory.has_ungated and (writes or memory.has_gates)
            # After the write, because that may compute the whole step again.
            parity = memory.check_next(opened, ungated, finite)
            rings = memory.rings
            appends, position = memory.lay_rows(opened) if rings is not None else (False, (0, 0))
            openings = counters.with_openings(opened) if opened else counters.openings
            tokens = governor.after(asks, writes) if governor is not None else None
            # From here on nothing is called before all of it is stored: a signal's handler, which
            # may raise between any two calls, finds the whole step done, or nothing of it.
            counters.steps += 1
            counters.suppressed_writes += asks and not writes
            if governor is not None and tokens is not None:
                governor.tokens = tokens
                counters.budget_overruns += writes and governor.overdrawn
                if asks and not writes and governor.policy == "raise":
                    raise governor.refusal()
            memory.parity = parity
            memory.committed += 1
            counters.writes += writes
            counters.ungated_writes += ungated
            counters.openings = openings
            if rings is not None:
                counters.appends += appends
                rings.position = position
            if writes and governor is not None and governor.overdrawn:
                governor.warn()
        except (EngineError, StateFault) as fault:
            if black_box is not None:
                black_box.after(False, fault)
            self._answer(fault)
        except WriteBudgetError:
            if black_box is not None:
                black_box.after(False)
            raise
        else:
            if black_box is not None:
                black_box.after(writes)
            if answers is not None:
                answers.keep()
            if self._health is not None:
                self._health.take()
            if self._keeper is not None:
                self._keeper.save_by_policy(raises=self._on_fault == "raise")
        if deadline is not None:
            deadline.check(start_ns)
        if self._resident is not None:
            self._resident.step()
        return self._outputs

    def prefill(self, /, **inputs: Array) -> dict[str, Array]:
        """Many steps at once, for a prompt or a recorded history.

        Memory and ledger end as after one `step` for each of them, but automatic snapshots come at
        most once a chunk. The bundle's chunk graph is used, if it has one and the session has no
        write budget, deadline or fault policy; otherwise the steps are taken one by one.

        Args:
            **inputs: One array ``(steps, *shape)`` for each input of the manifest.

        Returns:
            Outputs of all steps by name, ``(steps, *shape)``; arrays of the caller's own.

        Raises:
            StepInputError: As in `step`; nothing has been stepped.
            EngineError, StateFault: A chunk failed; the memory is that before it.
            MemoryBudgetError: The chunk graph does not fit; nothing has been stepped.
            SnapshotError: An automatic snapshot failed; the steps before it are committed.
        """
        self._open_engine()
        if self._deadline is not None:
            self._deadline.start()  # a history begins anew too, if the last step was long ago
        self._check_begun()
        answers = self._prefill.take(inputs, self.step)
        if self._resident is not None:
            self._resident.look()
        return answers

    def _answer(self, fault: RuntimeFault) -> None:
        """Answer a fault as the policy says; the old state is in place already."""
        if isinstance(fault, EngineError):  # the memory counts what it refuses
            self._counters.faults += 1
        answered = self._answers is not None and self._answers.give()
        if self._resets_on_fault:
            self._memory.begin()
        elif self._on_fault == "rewind":
            self._memory.retreat()
        if not answered:
            raise fault

    def every(
        self, hz: float, ticks: int | None = None, on_rate: Literal["warn", "raise"] = "warn"
    ) -> Loop:
        """A loop of fixed period whose missed periods count as deadline misses.

            for tick in session.every(hz=100):
                session.step(x=read_sensor())

        Args:
            hz: Ticks per second.
            ticks: How many; None goes on for ever.
            on_rate: Whether another rate than the bundle's is refused, or warned of.

        Raises:
            SpecError: The rates differ, and ``on_rate`` is ``raise``.
        """
        check_loop_rate(self.manifest.observation, hz, on_rate)
        return Loop(
            hz,
            clock=self._clock,
            ticks=ticks,
            on_miss=self._counters.add_misses,
            on_clock_fault=self._counters.add_clock_fault,
            times=self._times,
        )

    def follow(self, overdrawn: bool, shift: float, chain: int | None = None) -> None:
        """Find write budget, and chain, in the next step, as another session found them."""
        if chain is not None:
            self._memory.chain = chain
        if self._governor is not None:
            self._governor.follow(overdrawn, shift)

    def close(self) -> None:
        """Free engines and files; a second call does nothing. The ledger can be read."""
        if self._black_box is not None:
            self._black_box.close()
        if self._keeper is not None:
            self._keeper.close()
        self._memory.chain_up()  # while the engine can still show its states
        super().close()
        self._prefill.close()
