"""The calibration record: numbers that calibration decides and export applies."""

from __future__ import annotations

from pathlib import Path

import msgspec

from stategate.contract.errors import CalibrationError
from stategate.contract.specs import Record

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
    def load(cls, path: Path, model_sha256: str) -> CalibrationRecord:
        """Read a record and check that it is for this model.

        Raises:
            CalibrationError: It cannot be read, or was made for other weights.
        """
        try:
            record = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise CalibrationError(
                "the calibration record cannot be read", found=f"{path}: {problem}"
            ) from problem
        if record.version != CALIBRATION_VERSION or record.model_sha256 != model_sha256:
            raise CalibrationError(
                "the calibration record is for another model or of another version",
                found=f"version {record.version}, weights {record.model_sha256[:12]}",
                expected=f"version {CALIBRATION_VERSION}, weights {model_sha256[:12]}",
                remedy="calibrate again: stategate calibrate",
            )
        return record
