"""Every error that stategate raises on purpose. All of them are a `StategateError`.

A message names the thing and what is wrong with it, what was found, what would have been accepted,
and what to do. Which class it is says who can do something about it::

    StategateError
    ├── SpecError                a description contradicts itself
    │   └── ManifestError
    ├── BundleError              a folder is no bundle, or is for something else
    │   ├── DigestError
    │   └── TrustError
    ├── StepInputError           the caller gave a step something that it does not take
    │   └── NonFiniteInputError
    ├── RuntimeFault             the device side failed; the last good state is in place
    │   ├── EngineError
    │   ├── StateFault
    │   │   └── PoolFault
    │   ├── PoolFullError
    │   └── BudgetError          a limit was passed, and its policy is to raise
    │       ├── MemoryBudgetError
    │       ├── WriteBudgetError
    │       ├── PersistBudgetError
    │       └── DeadlineError
    ├── SnapshotError            a snapshot cannot be written or taken back
    │   └── SnapshotDamagedError
    ├── InstallError             an update is refused, or an installation has nothing to run
    ├── ExportError              the model cannot become a bundle
    │   ├── TraceError
    │   │   └── UndeclaredStateError
    │   ├── GraphError
    │   │   └── SplitError
    │   ├── LowerError
    │   ├── StatePairingError
    │   └── ParityError
    ├── BuildError               a compiler or TensorRT cannot build here
    ├── CalibrationError         no threshold meets the request
    ├── EpisodeError             a recording does not fit the model
    ├── RegistryError            a registry does not answer, or holds something else
    ├── ResultError              a file of results cannot be written or read
    ├── MeasurementError         a measurement stopped
    ├── TargetError              an unknown or contradictory target
    └── MissingDependencyError   an optional library is not installed
"""

from __future__ import annotations

from typing import ClassVar

from stategate.contract.reading import printable

_LONGEST_LINE = 2000
_MORE_LINES = 20  # after the first; a compiler says what matters in fewer


class StategateError(Exception):
    """The base of every error that stategate raises on purpose.

    Attributes:
        what: The thing concerned and what is wrong with it, without the rest of the message.
        exit_code: What the command line exits with: 2 for wrong use, 1 where the command ran and
            the answer is no.

    Args:
        what: As the attribute.
        found: What was found.
        expected: What would have been accepted.
        remedy: What the reader should do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.what = what
        lines = [printable(what, _LONGEST_LINE)]
        for label, part in (("found", found), ("expected", expected), ("what to do", remedy)):
            if part is not None:
                lines.append(f"{label}: {_quoted(part)}")
        super().__init__("\n  ".join(lines))

    @property
    def reason(self) -> str:
        """The message on one line, without its remedy: for an error that has another one."""
        return str(self).partition("\n  what to do")[0].replace("\n  ", "; ")


def _quoted(part: object) -> str:
    """Text from a stranger's file, indented so that no line of it looks like one of the message."""
    first, *rest = (printable(line, _LONGEST_LINE) for line in str(part).splitlines() or [""])
    more = [f"and {len(rest) - _MORE_LINES} more lines"] if len(rest) > _MORE_LINES else []
    return "\n    | ".join([first, *rest[:_MORE_LINES], *more])


class SpecError(StategateError, ValueError):
    """A tensor, state, gate, budget or configuration contradicts itself; correct the field named.

    Also a ValueError, so that msgspec reports it with the path of the offending field.
    """


class ManifestError(SpecError):
    """manifest.json is no manifest that this build can read; export again, or upgrade stategate."""

    exit_code = 1


class BundleError(StategateError):
    """The folder is no bundle, or one for another purpose; give the path of a fitting bundle."""


class DigestError(BundleError):
    """A file of the bundle is missing, altered, or outside its folder; copy the bundle again."""

    exit_code = 1


class TrustError(BundleError):
    """A signature is missing, wrong or of somebody else, or a policy refuses the bundle.

    Ask its author for a signature that this machine accepts; nothing of the bundle was run.
    """

    exit_code = 1


class StepInputError(StategateError):
    """An input, state or row is missing, unknown, or of the wrong shape or dtype; no state changed.

    Pass what the manifest names: `Session.manifest.inputs` lists it.
    """


class NonFiniteInputError(StepInputError):
    """An input holds NaN or Inf; leave this observation out, or replace the value."""


class RuntimeFault(StategateError):
    """The device side failed and the last good state is in place; or the session is closed."""

    exit_code = 1


class EngineError(RuntimeFault):
    """An engine cannot be loaded, or failed in a step; try another engine."""


class StateFault(RuntimeFault):
    """A gate, next state or output holds NaN or Inf; the write was refused. Go on, or reset."""


class PoolFault(StateFault):
    """Some rows of a pool were refused; every other row of the step was committed.

    Attributes:
        rows: The refused rows, in ascending order: go on with them, or reset them.
    """

    def __init__(
        self, what: str, *, rows: tuple[int, ...], found: object, remedy: str | None = None
    ) -> None:
        super().__init__(what, found=found, expected="finite numbers", remedy=remedy)
        self.rows = rows


class PoolFullError(RuntimeFault):
    """Every row of a pool is taken; let a session leave first."""


class BudgetError(RuntimeFault):
    """A limit was passed, and its policy is to raise; raise the limit or choose another policy."""


class MemoryBudgetError(BudgetError):
    """Opening would need more memory than allowed, and took none; or the process has grown."""


class WriteBudgetError(BudgetError):
    """A write beyond the budget was refused; the old state stays."""


class PersistBudgetError(BudgetError):
    """A snapshot beyond the wear budget was not written; the flash may have it later."""


class DeadlineError(BudgetError):
    """A step took longer than its deadline; its state is committed."""


class SnapshotError(StategateError):
    """A snapshot cannot be written or taken back; the session's state is untouched.

    The folder is in use, full, gone, or holds snapshots of another memory or a newer format.
    """

    exit_code = 1


class SnapshotDamagedError(SnapshotError):
    """Checksum, length or header of a snapshot are wrong; the other slot may be good."""


class InstallError(StategateError):
    """A bundle is refused as an update, or an installation has nothing that it can run.

    What was installed before goes on.
    """

    exit_code = 1


class EngineFallbackWarning(UserWarning):
    """An engine that was asked for cannot be used here, and the next one is."""


class SnapshotWarning(UserWarning):
    """A snapshot folder can be used, and something in it cannot."""


class BudgetWarning(UserWarning):
    """A limit was passed, and its policy is to warn."""


class HealthWarning(UserWarning):
    """A stream left what the bundle's health envelope knows."""


class RateWarning(UserWarning):
    """A loop runs at another rate than the policy that it steps."""


class RealTimeWarning(UserWarning):
    """Something of `RealTime` could not be had; the text names each remedy."""


class ExportError(StategateError):
    """The model cannot become a bundle; the message names the part to change."""


class TraceError(ExportError):
    """torch.export gave up, or the step broke its own spec; change the line that is named."""


class UndeclaredStateError(TraceError):
    """A buffer or attribute changes during a step; declare it as a state."""


class GraphError(ExportError):
    """The ONNX graph breaks a rule: branches, open axes, names, opset."""


class SplitError(GraphError):
    """A step cannot be split into read and write, or gains nothing by it; export it fused."""


class LowerError(ExportError):
    """The graph uses something that cannot be written as C; step it with onnxruntime."""

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        remedy: str | None = "the onnxruntime engine steps this model",
    ) -> None:
        super().__init__(what, found=found, expected=expected, remedy=remedy)


class StatePairingError(ExportError):
    """The states of an adopted graph are ambiguous or mismatched; name them with --state."""


class ParityError(ExportError):
    """The bundle does not behave like the model that it was made from; do not deploy it."""

    exit_code = 1


class BuildError(StategateError):
    """A compiler or TensorRT is missing here, or refused what it was given."""

    exit_code = 1


class CalibrationError(StategateError):
    """No threshold meets the request, or the record is for another model."""

    exit_code = 1


class EpisodeError(StategateError):
    """A recording does not fit the model, or cannot be read; record it again."""


class RegistryError(StategateError):
    """A registry does not answer, refuses, or holds something else; nothing was written."""

    exit_code = 1


class ResultError(StategateError):
    """A result cannot be written where it was asked for, or a file of results is malformed."""


class MeasurementError(StategateError):
    """What was being measured stopped, or cannot be measured on this machine."""

    exit_code = 1


class TargetError(StategateError):
    """A target is unknown, or its profile contradicts itself; list them with ``targets``."""


class MissingDependencyError(StategateError):
    """A library that this command needs is not installed; the message has the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", remedy=f'pip install "stategate[{extra}]"')
