"""The calibration record: numbers that calibration decides and export applies."""

from __future__ import annotations

from pathlib import Path

from stategate.contract.errors import CalibrationError, SpecError
from stategate.contract.records import load_record, save_record
from stategate.contract.specs import Record, is_threshold

CALIBRATION_VERSION = 2


class Interval(Record, frozen=True):
    """Where a mean over episodes lies with 95 % confidence."""

    low: float
    high: float


class CurvePoint(Record, frozen=True):
    """What one threshold does in closed loop.

    Attributes:
        threshold: Where the gate opens.
        write_rate: Share of steps in which any element of the gate opens.
        element_rate: Share of elements (heads, slots, channels) that open, over all steps; for a
            gate of step granularity the same.
        accuracy: Share of labelled answers that are right; None without labels.
        output_error: Root mean square difference to the outputs of the reference model, in units
            of their root mean square; the largest of any output. None where nothing was compared.
        missed_rate: Share of steps that are quiet and should have written, in records of a rule
            of before; None in those of today.
        needless_rate: Share of steps that write and need not have; None likewise.
        flip_rate: Share of gate elements that decide otherwise than the float bundle's, for a
            recalibrated bundle; None for others.
        write_interval: Of ``element_rate`` over episodes; None where there was only one.
        accuracy_interval: Of ``accuracy``, likewise.
    """

    threshold: float
    write_rate: float
    element_rate: float
    accuracy: float | None = None
    output_error: float | None = None
    missed_rate: float | None = None
    needless_rate: float | None = None
    flip_rate: float | None = None
    write_interval: Interval | None = None
    accuracy_interval: Interval | None = None


class GateCalibration(Record, frozen=True):
    """The threshold chosen for a gate, and why.

    Attributes:
        gate: Name of the gate.
        threshold: The choice.
        write_rate: Share of steps that write at that threshold.
        rule: How it was chosen, in words.
        curve: Everything that was tried, by threshold.
        reference: Threshold of the model that ``output_error`` compares with; None where that is
            another bundle.
    """

    gate: str
    threshold: float
    write_rate: float
    rule: str
    curve: tuple[CurvePoint, ...]
    reference: float | None = None

    def __post_init__(self) -> None:
        """Refuse a threshold that no gate could be compared with."""
        if not is_threshold(self.threshold):
            raise SpecError("a threshold must be finite in float32", found=self.threshold)


class CalibrationRecord(Record, frozen=True):
    """One calibration of one model.

    Attributes:
        model_sha256: Digest of the weights it is for.
        episodes: What the model was rolled through.
        steps: Steps in all.
        gates: One entry a calibrated gate.
        version: Version of this record's schema.
    """

    model_sha256: str
    episodes: str
    steps: int
    gates: tuple[GateCalibration, ...]
    version: int = CALIBRATION_VERSION

    @classmethod
    def load(cls, path: str | Path) -> CalibrationRecord:
        """Read a record; `CalibrationError` where it cannot be, or is of another version."""
        return load_record(
            path,
            cls,
            CalibrationError,
            "the calibration record",
            remedy="calibrate again: stategate calibrate",
            version=CALIBRATION_VERSION,
        )

    def save(self, path: str | Path) -> None:
        """Write the record where `load` reads it; `ResultError` where it cannot be written."""
        save_record(self, path)
