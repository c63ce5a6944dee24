"""What export promises and the runtime relies on: specs, manifest, bundle, errors."""

from stategate.contract.budget import Budget
from stategate.contract.bundle import Bundle, refuse_to_replace, sha256, write_bundle
from stategate.contract.calibration import CalibrationRecord, CurvePoint, GateCalibration
from stategate.contract.chunks import VALID, chunked
from stategate.contract.episode import Episode
from stategate.contract.episodes import EpisodeFile, EpisodeSet, load_episode
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
