"""The calibration record: numbers that calibration decides and export applies."""

from __future__ import annotations

from pathlib import Path

import msgspec

from stategate.contract.errors import CalibrationError, SpecError
from stategate.contract.specs import Record, is_threshold

CALIBRATION_VERSION = 1


class CurvePoint(Record, frozen=True):
    """What one threshold does.

    Attributes:
        threshold: Where the gate opens.
        write_rate: Share of steps that write.
        accuracy: Task metric in [0, 1].
    """

    threshold: float
    write_rate: float
    accuracy: float


class GateCalibration(Record, frozen=True):
    """The threshold chosen for a gate, and why.

    Attributes:
        gate: Name of the gate.
        threshold: The choice.
        write_rate: Share of steps that write at that threshold.
        rule: How it was chosen, in words.
        curve: Everything that was tried.
    """

    gate: str
    threshold: float
    write_rate: float
    rule: str
    curve: tuple[CurvePoint, ...]

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
    def load(cls, path: Path) -> CalibrationRecord:
        """Read a record.

        Raises:
            CalibrationError: It cannot be read, or is of another version.
        """
        try:
            record = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise CalibrationError(
                "the calibration record cannot be read",
                found=f"{path}: {problem}",
                remedy="calibrate again: stategate calibrate",
            ) from problem
        if record.version != CALIBRATION_VERSION:
            raise CalibrationError(
                "the calibration record is of another version",
                found=record.version,
                expected=CALIBRATION_VERSION,
                remedy="calibrate again: stategate calibrate",
            )
        return record
