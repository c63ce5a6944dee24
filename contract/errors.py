"""Every error stategate raises on purpose.

StategateError
├── ContractError            a spec or manifest that contradicts itself
│   ├── ManifestError        manifest.json is not a manifest of this schema
│   │   └── SchemaVersionError   it is one, of a version this build cannot read
│   └── SpecError            a tensor, state, gate or budget that cannot be
├── BundleError              the directory on disk is not what its manifest says
│   ├── DigestError          a file was altered or truncated
│   ├── PoolBundleError      it serves several sessions, and one was asked for
│   └── UnsafePathError      a path in the manifest leaves the bundle
├── StepInputError           the caller handed a step something it cannot take
│   ├── MissingInputError / UnknownInputError
│   ├── ShapeError / DtypeError
│   ├── NonFiniteInputError  NaN or Inf in an observation
│   └── RowError             a row of a pool that no session has joined
├── RuntimeFault             the device side failed; the last good state is in place
│   ├── EngineError          an engine cannot be loaded, or failed in a step
│   ├── StateFault           a step computed NaN or Inf; its write was refused
│   │   ├── OutputFault      in an output, which is no answer then
│   │   └── PoolFault        in some rows of a pool; the others were committed
│   ├── PoolFullError        every row of a pool is taken
│   ├── SessionClosedError
│   └── BudgetError          a limit would be passed
│       ├── MemoryBudgetError    refused before anything is allocated
│       ├── WriteBudgetError     the write was refused
│       ├── PersistBudgetError   the snapshot was refused
│       └── DeadlineError        the step took too long; its state is committed
├── SnapshotError            a snapshot cannot be written or taken back
│   ├── SnapshotDamagedError     checksum, length or header are wrong
│   ├── SnapshotVersionError     it is of a newer format
│   ├── SnapshotMismatchError    it is of another model, or its ledger goes backwards
│   └── SnapshotLockedError      another process holds the folder
├── ExportError              the model cannot become a bundle
│   ├── ModelConfigError     a configuration that a cell cannot express
│   ├── TraceError           torch.export gave up, or the step broke its own spec
│   │   └── UndeclaredStateError a buffer or attribute changes behind the contract's back
│   ├── GraphError           the ONNX graph breaks a rule (branches, dynamic shapes, names)
│   │   └── SplitError       a step cannot be taken apart into read and write, or gains nothing
│   ├── BuildError           TensorRT cannot build an engine here
│   ├── LowerError           the graph cannot be written as C
│   ├── StatePairingError    an adopted graph's states are ambiguous or mismatched
│   ├── LeappError           a LEAPP export is malformed, or no single ONNX step with state
│   └── ParityError          the bundle does not behave like the model
├── CompilerError            no C compiler, or it refused the source
├── CalibrationError         no threshold meets the request, or the episodes do not fit
├── EpisodeError             a recorded episode does not fit the model
├── OutputError              a result cannot be written where it was asked for
├── ResultError              a file of measurements is malformed, or of another version
├── MeasurementError         what was being measured stopped, or cannot be measured here
├── TargetError              an unknown target or a contradictory profile
└── MissingDependencyError   a library that this command needs is not installed

A message names the thing, what was found, what was expected, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

from stategate.contract.reading import printable

# Of one line of an error, and lines after the first; a compiler says its five in fewer.
_LONGEST = 2000
_LINES = 20


class StategateError(Exception):
    """Base of every deliberate error.

    Attributes:
        exit_code: What the command line exits with: 2 for wrong use, 1 where the command ran and
            the answer is no.

        what: The thing concerned and what is wrong with it, without the rest of the message: for
            a command that has a remedy of its own.

    Args:
        what: The same.
        found: What was found.
        expected: What would have been accepted.
        remedy: What the reader should do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.what = what
        parts = [printable(what, _LONGEST)]
        for label, part in (("found", found), ("expected", expected), ("what to do", remedy)):
            if part is not None:
                parts.append(f"{label}: {_quoted(part)}")
        super().__init__("\n  ".join(parts))


def _quoted(part: object) -> str:
    """Names may come from a stranger's file: a line of theirs must not look like one of ours."""
    first, *rest = (printable(line, _LONGEST) for line in str(part).splitlines() or [""])
    more = [f"and {len(rest) - _LINES} more lines"] if len(rest) > _LINES else []
    return "\n    | ".join([first, *rest[:_LINES], *more])


class ContractError(StategateError):
    """A spec or manifest that contradicts itself."""


class SpecError(ContractError, ValueError):
    """A tensor, state, gate or budget that cannot be.

    Also a ValueError, so that msgspec reports it with the path of the offending field.
    """


class ManifestError(ContractError):
    """manifest.json is not a manifest of this schema."""

    exit_code = 1


class SchemaVersionError(ManifestError):
    """The manifest is of a schema version that this build cannot read."""


class BundleError(StategateError):
    """The directory on disk is not what its manifest says."""


class DigestError(BundleError):
    """A file of the bundle was altered or truncated."""

    exit_code = 1


class PoolBundleError(BundleError):
    """The bundle serves several sessions at once, and one session was asked for."""


class UnsafePathError(BundleError, ValueError):
    """A path in the manifest leaves the bundle's folder."""

    exit_code = 1


class StepInputError(StategateError):
    """The caller handed a step something it cannot take; no state has changed."""


class MissingInputError(StepInputError):
    """An input of the model was not given."""


class UnknownInputError(StepInputError):
    """A name was given that the model does not have."""


class ShapeError(StepInputError):
    """An input has the wrong shape."""


class DtypeError(StepInputError):
    """An input has the wrong dtype."""


class NonFiniteInputError(StepInputError):
    """An input holds NaN or Inf."""


class RowError(StepInputError):
    """A row of a pool was named that no session has joined, or that does not exist."""


class RuntimeFault(StategateError):
    """The device side failed; the last good state is in place."""

    exit_code = 1


class EngineError(RuntimeFault):
    """An engine cannot be loaded, or failed in a step."""


class StateFault(RuntimeFault):
    """A step computed NaN or Inf in a gate, a next state or an output; its write was refused."""


class OutputFault(StateFault):
    """An output holds NaN or Inf, so it is no answer; the state is that before the step."""


class PoolFault(StateFault):
    """Some rows of a pool were refused; every other row of the step was committed.

    Attributes:
        rows: The refused rows, in ascending order.
    """

    def __init__(
        self, what: str, *, rows: tuple[int, ...], found: object, remedy: str | None = None
    ) -> None:
        super().__init__(what, found=found, expected="finite numbers", remedy=remedy)
        self.rows = rows


class PoolFullError(RuntimeFault):
    """Every row of a pool is taken."""


class SessionClosedError(RuntimeFault):
    """The session was closed before this call."""


class BudgetError(RuntimeFault):
    """A limit would be passed."""


class MemoryBudgetError(BudgetError):
    """The bundle's plan does not fit; nothing was allocated."""


class WriteBudgetError(BudgetError):
    """A write beyond the budget; it was refused and the old state stays."""


class PersistBudgetError(BudgetError):
    """A snapshot beyond the wear budget; it was not written."""


class DeadlineError(BudgetError):
    """A step took longer than its deadline; its state is committed."""


class SnapshotError(StategateError):
    """A snapshot cannot be written or taken back; the session's state is untouched."""

    exit_code = 1


class SnapshotDamagedError(SnapshotError):
    """Checksum, length or header of a snapshot are wrong."""


class SnapshotVersionError(SnapshotError):
    """The snapshot is of a newer format."""


class SnapshotMismatchError(SnapshotError):
    """The snapshot is of another model, or its ledger goes backwards."""


class SnapshotLockedError(SnapshotError):
    """Another process holds the snapshot folder."""


class EngineFallbackWarning(UserWarning):
    """An engine that was asked for cannot be had here, and the next one that was is used."""


class SnapshotWarning(UserWarning):
    """A snapshot folder can be used, and something in it cannot."""


class BudgetWarning(UserWarning):
    """A limit was passed, and its policy is to warn."""


class ExportError(StategateError):
    """The model cannot become a bundle."""


class ModelConfigError(ExportError, ValueError):
    """A configuration that a cell cannot express."""


class TraceError(ExportError):
    """torch.export gave up, or the step broke its own spec."""


class UndeclaredStateError(TraceError):
    """A buffer or attribute changes during a step and is not declared as a state."""


class GraphError(ExportError):
    """The ONNX graph breaks a rule: branches, dynamic shapes, names, opset."""


class SplitError(GraphError):
    """A step cannot be taken apart into read and write, or gains nothing by it."""


class LowerError(ExportError):
    """The graph uses something that cannot be written as C; another engine steps it."""


class BuildError(ExportError):
    """TensorRT cannot build an engine of a graph on this machine."""

    exit_code = 1


class StatePairingError(ExportError):
    """The states of an adopted graph are ambiguous or mismatched."""


class LeappError(ExportError):
    """A LEAPP export is malformed, or is not one ONNX step that feeds something back."""


class ParityError(ExportError):
    """The bundle does not behave like the model it was made from."""

    exit_code = 1


class CompilerError(StategateError):
    """There is no C compiler, or it refused the source."""

    exit_code = 1


class CalibrationError(StategateError):
    """No threshold meets the request, or the record is for another model."""

    exit_code = 1


class EpisodeError(StategateError):
    """A recorded episode does not fit the model."""


class OutputError(StategateError):
    """A result cannot be written where it was asked for."""


class ResultError(StategateError):
    """A file of measurements is malformed, of another version, or of another run."""


class MeasurementError(StategateError):
    """What was being measured stopped, or cannot be measured on this machine."""

    exit_code = 1


class TargetError(StategateError):
    """An unknown target, or a profile that contradicts itself."""


class MissingDependencyError(StategateError):
    """A library that this command needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed",
            remedy=f'pip install "stategate[{extra}]"',
        )
