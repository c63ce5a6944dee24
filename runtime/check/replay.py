"""Stepping a black box again: bit for bit, or within a tolerance where no bits are promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stategate.contract import Budget, Bundle, Manifest
from stategate.contract.chain import START
from stategate.contract.errors import (
    EngineError,
    EpisodeError,
    StateFault,
    WriteBudgetError,
)
from stategate.contract.numbers import bounded, whole
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.base.tensor import Tensor
from stategate.runtime.check.gaps import Gaps
from stategate.runtime.check.golden import TOLERANCE
from stategate.runtime.check.recording import Gap, Keyframe, Opening, Recording, Step
from stategate.runtime.engines.engine import EngineChoice
from stategate.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Moment:
    """What one step took and gave when it was stepped again."""

    step: int  # its number
    inputs: dict[str, Tensor]  # by name
    outputs: dict[str, Tensor]  # by name
    gates: dict[str, Tensor]  # by name
    thresholds: dict[str, float]  # of the hard gates, as the manifest has them
    states: dict[str, Tensor]  # after the step, by name
    wrote: bool  # whether a state was written
    fault: str  # what refused the write; empty where nothing did


@dataclass(slots=True)
class ReplayReport:
    """What came of stepping a recording again."""

    model: str  # name of the model
    engine: str  # what stepped it here
    recorded_engine: str = ""  # what stepped it then, the newest process
    first_step: int | None = None  # number of the first step that was stepped again
    last_step: int = 0  # number of the last one
    steps: int = 0  # how many
    writes: int = 0  # of them, steps that wrote
    faults: int = 0  # of them, steps that NaN or Inf refused, then as now
    begins: int = 0  # resets, and other states that came from outside
    processes: int = 0  # that recorded
    gaps: list[Gap] = field(default_factory=list)  # steps that cannot be stepped again
    # the first step after which the states have other bits; None where none has
    parts_at: int | None = None
    problem: str = ""  # why the replay is not what was recorded, in words; empty where it is
    # at keyframes after ``parts_at``, see `Gaps`; None where none was compared
    max_state_error: float | None = None
    moment: Moment | None = None  # the step that was asked for, or None

    @property
    def bit_for_bit(self) -> bool:
        """Whether the chain of hashes was the same after every step."""
        return self.parts_at is None

    @property
    def passed(self) -> bool:
        """Whether the recording is whole and was stepped again as it was."""
        return not self.problem and not self.gaps


class Stepper:
    """Steps a bundle as a recording says.

    Attributes:
        session: What is stepped.
        chain: The chain of hashes after the last step.
        fault: What refused the last step's write; empty where nothing did.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.chain, self.fault = session, START, ""
        self._names = [state.name for state in session.manifest.states]

    def states(self) -> dict[str, Array]:
        """Copies of the states as the next step will see them."""
        return {name: self.session.state(name) for name in self._names}

    def begin(self, keyframe: Keyframe) -> None:
        """Go on from a keyframe."""
        if keyframe.states is None:
            self.session.reset()
        else:
            self.session.load_state(keyframe.states)
        self.chain = keyframe.chain

    def step(self, recorded: Step) -> bool:
        """Take a step; whether it wrote."""
        session, self.fault = self.session, ""
        before = session.ledger.writes
        session.follow(recorded.overdrawn, recorded.shift, self.chain)
        if not recorded.skipped:
            try:
                session.step(**recorded.inputs)
            except (StateFault, EngineError) as fault:
                self.fault = fault.what
            except WriteBudgetError:
                pass  # the states stay, as they did then
        self.chain = session.chain
        return session.ledger.writes > before


def open_stepper(bundle: Bundle, opening: Opening | None, engine: EngineChoice | None) -> Stepper:
    """Open a bundle to step a recording again: by the engine that recorded, where it can be had."""
    if engine is None:
        was_native = opening is not None and opening.is_native
        engine = "native,onnxruntime" if was_native and bundle.manifest.native else "auto"
    budget = _write_budget(bundle.manifest, opening)
    return Stepper(
        Session.open(bundle, budget=budget, engine=engine, clock=ManualClock(), chain=True)
    )


def _write_budget(manifest: Manifest, opening: Opening | None) -> Budget:
    """The limits of writes that were in force; a time limit or a wear budget decides nothing."""
    limits = opening.budget if opening is not None else None
    if limits is None:  # a program in C asks a hook of its own, which holds
        least = manifest.budget.writes_per_1000_steps
        return Budget(writes_per_1000_steps=1000.0 if least is None else least, on_writes="hold")
    return Budget(
        writes_per_1000_steps=limits.writes_per_1000_steps,
        writes_per_second=limits.writes_per_second,
        on_writes=limits.on_writes,
        adapt_limit=limits.adapt_limit,
    )


def replay(
    path: str | Path,
    bundle: str | Path | Bundle,
    *,
    at: int | None = None,
    engine: EngineChoice | None = None,
    tolerance: float = TOLERANCE,
    report: Callable[[int], None] = lambda _: None,
) -> ReplayReport:
    """Step what a black box recorded once more, and compare the chain of hashes at every step.

        report = stategate.replay("robot.rec", "build/policy", at=48_210)
        print(report.passed, report.moment.gates, report.moment.states)

    The C engine promises the same bits on every machine: where its chain parts, something is wrong,
    and the replay stops there. Other engines, and C with inexact operators, do not: from the step
    on where they part, writes are compared at each step and states at each keyframe, which is then
    gone on from.

    Args:
        path: The file of the black box, or a copy.
        bundle: That was recorded.
        at: Stop after this step, and show it.
        engine: What steps it; the one that recorded, where it can be had.
        tolerance: Of states at keyframes, as a share of their size.
        report: Called with the number of each step.

    Raises:
        EpisodeError: The file is no black box, holds nothing to step, or not the step asked for.
        SnapshotDamagedError: It is damaged where nothing can be read any more.
        BundleError: It is the recording of another bundle.
        EngineError: The engine cannot be loaded.
    """
    bounded("tolerance", tolerance)
    if at is not None:
        whole("at", at)
    recording, opened = Recording(path), Bundle.open(bundle)
    recording.check_bundle(opened)
    stepper = open_stepper(opened, recording.opening, engine)
    with stepper.session:
        run = _Run(stepper, tolerance)
        for event in recording.events(opened.manifest):
            if at is not None and isinstance(event, Keyframe) and event.step >= at:
                break
            run.take(event)
            if isinstance(event, Step):
                report(event.step)
                if event.step == at:
                    run.result.moment = _moment(stepper, event, run.wrote)
                    break
            if run.has_ended:
                break
        result = run.finished()
    if result.first_step is None or (at is not None and not (result.moment or result.problem)):
        raise _missing_step(recording, opened.manifest, at)
    return result


def _missing_step(recording: Recording, manifest: Manifest, at: int | None) -> EpisodeError:
    span = recording.span(manifest)
    if at is None or span is None:
        return recording.nothing()
    return EpisodeError(
        f"{recording.path.name} has no step {at} that could be stepped again",
        expected=f"a step from {span[0]} to {span[1]}, and not in a gap",
        remedy=f"--at {span[1]}",
    )


class _Run:
    """A replay as it goes: what is compared at each event."""

    def __init__(self, stepper: Stepper, tolerance: float) -> None:
        session = stepper.session
        self._stepper, self._tolerance = stepper, tolerance
        self.result = ReplayReport(session.manifest.model.name, session.engine_name)
        native = session.manifest.native
        is_exact = native is not None and not native.inexact
        self._is_exact = is_exact and session.engine_name.startswith("native")
        self._promises_bits = False
        self._gaps, self._unchecked = Gaps(), 0
        self.wrote = self.has_ended = False

    def take(self, event: Opening | Keyframe | Step | Gap) -> None:
        """One event."""
        result = self.result
        if isinstance(event, Gap):
            result.gaps.append(event)
        elif isinstance(event, Opening):
            result.processes += 1
            result.recorded_engine = event.engine
            self._promises_bits = event.is_native and self._is_exact
        elif isinstance(event, Keyframe):
            self._keyframe(event)
        else:
            self._step(event)

    def _keyframe(self, event: Keyframe) -> None:
        stepper = self._stepper
        if event.is_jump:
            self.result.begins += event.is_begin and self.result.first_step is not None
            stepper.begin(event)
        elif self.result.parts_at is not None and event.states is not None:
            self._gaps.add(stepper.states(), event.states)
            self._unchecked = 0
            error = self.result.max_state_error = self._gaps.worst()
            if not error <= self._tolerance:
                self._stop(
                    f"the states at step {event.step} are {error:.3g} of their size apart, and "
                    f"{self._tolerance:g} is allowed"
                )
            stepper.begin(event)

    def _step(self, event: Step) -> None:
        result, stepper = self.result, self._stepper
        self.wrote = wrote = stepper.step(event)
        if result.first_step is None:
            result.first_step = event.step
        result.last_step = event.step
        result.steps += 1
        result.writes += wrote
        result.faults += event.failed
        self._unchecked += result.parts_at is not None
        if bool(stepper.fault) != event.failed:
            outcome = stepper.fault or "no NaN and no Inf"
            then = "was refused for NaN or Inf" if event.failed else "was good"
            self._stop(f"step {event.step} {then} when it was recorded, and here: {outcome}")
        elif wrote != event.wrote:
            words = ("wrote", "did not write") if event.wrote else ("did not write", "wrote")
            self._stop(f"step {event.step} {words[0]} when it was recorded, and {words[1]} here")
        elif result.parts_at is None and stepper.chain != event.chain:
            result.parts_at, self._unchecked = event.step, 1
            if self._promises_bits:
                self._stop(
                    f"the chain of hashes breaks at step {event.step}: {event.chain:016x} was "
                    f"recorded, {stepper.chain:016x} came out here"
                )

    def _stop(self, problem: str) -> None:
        self.result.problem, self.has_ended = problem, True

    def finished(self) -> ReplayReport:
        """The result, once nothing comes any more."""
        result = self.result
        if self._unchecked and not result.problem and result.moment is None:
            first = result.last_step - self._unchecked + 1
            result.problem = (
                f"the states of steps {first} to {result.last_step} have other bits here, and no "
                "keyframe after them tells how far they are apart"
            )
        return result


def _moment(stepper: Stepper, event: Step, wrote: bool) -> Moment:
    session = stepper.session

    def tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        return {name: Tensor.of(array) for name, array in arrays.items()}

    return Moment(
        event.step,
        tensors(event.inputs),
        tensors(session.outputs),
        tensors(session.gates),
        dict(session.manifest.step.thresholds),
        tensors(stepper.states()),
        wrote,
        stepper.fault,
    )
