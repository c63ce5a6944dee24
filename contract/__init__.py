"""What export promises and the runtime relies on: specs, manifest, bundle, errors."""

from stategate.contract.bundle import Bundle, refuse_to_replace, sha256, write_bundle
from stategate.contract.calibration import CalibrationRecord, CurvePoint, GateCalibration
from stategate.contract.episode import Episode
from stategate.contract.manifest import (
    SCHEMA_VERSION,
    CalibrationRef,
    FileRef,
    GraphRef,
    Manifest,
    ModelRef,
    TargetRef,
    Verification,
    canonical_json,
)
from stategate.contract.sessions import batched, check_rows
from stategate.contract.specs import Budget, ConstantSpec, GateSpec, StateSpec, StepSpec, TensorSpec

__all__ = [
    "SCHEMA_VERSION",
    "Budget",
    "Bundle",
    "CalibrationRecord",
    "CalibrationRef",
    "ConstantSpec",
    "CurvePoint",
    "Episode",
    "FileRef",
    "GateCalibration",
    "GateSpec",
    "GraphRef",
    "Manifest",
    "ModelRef",
    "StateSpec",
    "StepSpec",
    "TargetRef",
    "TensorSpec",
    "Verification",
    "batched",
    "canonical_json",
    "check_rows",
    "refuse_to_replace",
    "sha256",
    "write_bundle",
]
