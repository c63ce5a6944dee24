"""What export promises and the runtime relies on: specs, manifest, bundle, errors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stategate.contract.budget import Budget
from stategate.contract.bundle import Bundle, refuse_to_replace, sha256, write_bundle
from stategate.contract.chunks import VALID, chunked
from stategate.contract.manifest import (
    SCHEMA_VERSION,
    CalibrationRef,
    DriftReceipt,
    FileRef,
    GraphRef,
    Manifest,
    ModelRef,
    TargetRef,
    canonical_json,
)
from stategate.contract.receipts import InputsRef, LowerPrecision, Verification
from stategate.contract.sessions import batched, check_rows, one_row
from stategate.contract.specs import ConstantSpec, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.split import Way, given_by_read, read_signature, write_signature

if TYPE_CHECKING:
    from stategate.contract.calibration import CalibrationRecord, CurvePoint, GateCalibration
    from stategate.contract.episode import Episode
    from stategate.contract.episodes import EpisodeFile, EpisodeSet, load_episode

# What a session on a device does not need is imported when somebody asks for it.
_LATER = {
    "CalibrationRecord": "calibration",
    "CurvePoint": "calibration",
    "GateCalibration": "calibration",
    "Episode": "episode",
    "EpisodeFile": "episodes",
    "EpisodeSet": "episodes",
    "load_episode": "episodes",
}

__all__ = [
    "SCHEMA_VERSION",
    "VALID",
    "Budget",
    "Bundle",
    "CalibrationRecord",
    "CalibrationRef",
    "ConstantSpec",
    "CurvePoint",
    "DriftReceipt",
    "Episode",
    "EpisodeFile",
    "EpisodeSet",
    "FileRef",
    "GateCalibration",
    "GateSpec",
    "GraphRef",
    "InputsRef",
    "LowerPrecision",
    "Manifest",
    "ModelRef",
    "StateSpec",
    "StepSpec",
    "TargetRef",
    "TensorSpec",
    "Verification",
    "Way",
    "batched",
    "canonical_json",
    "check_rows",
    "chunked",
    "given_by_read",
    "load_episode",
    "one_row",
    "read_signature",
    "refuse_to_replace",
    "sha256",
    "write_bundle",
    "write_signature",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
