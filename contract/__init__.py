"""What export promises and the runtime relies on: specs, manifest, bundle, errors.

What is named here is imported when it is used: help needs neither NumPy nor a manifest.
"""

# ruff: noqa: I001  (a name that is passed on says so with `as`; isort gives each a statement)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stategate.contract.budget import Budget as Budget
    from stategate.contract.bundle import (
        Bundle as Bundle,
        refuse_to_replace as refuse_to_replace,
        sha256 as sha256,
        write_bundle as write_bundle,
    )
    from stategate.contract.calibration import (
        CalibrationRecord as CalibrationRecord,
        CurvePoint as CurvePoint,
        GateCalibration as GateCalibration,
    )
    from stategate.contract.chunks import VALID as VALID, chunked as chunked
    from stategate.contract.episode import Episode as Episode
    from stategate.contract.episodes import (
        EpisodeFile as EpisodeFile,
        EpisodeSet as EpisodeSet,
        load_episode as load_episode,
        load_stream as load_stream,
    )
    from stategate.contract.manifest import (
        SCHEMA_VERSION as SCHEMA_VERSION,
        CalibrationRef as CalibrationRef,
        DriftReceipt as DriftReceipt,
        FileRef as FileRef,
        GraphRef as GraphRef,
        Manifest as Manifest,
        ModelRef as ModelRef,
        TargetRef as TargetRef,
    )
    from stategate.contract.observation import (
        Joints as Joints,
        ObservationContract as ObservationContract,
        ResetRules as ResetRules,
        Signal as Signal,
        Term as Term,
    )
    from stategate.contract.receipts import (
        InputsRef as InputsRef,
        LowerPrecision as LowerPrecision,
        Verification as Verification,
    )
    from stategate.contract.records import canonical_json as canonical_json
    from stategate.contract.sessions import (
        batched as batched,
        check_rows as check_rows,
        one_row as one_row,
    )
    from stategate.contract.specs import (
        ConstantSpec as ConstantSpec,
        GateSpec as GateSpec,
        StateSpec as StateSpec,
        StepSpec as StepSpec,
        TensorSpec as TensorSpec,
    )
    from stategate.contract.split import (
        Way as Way,
        given_by_read as given_by_read,
        read_signature as read_signature,
        write_signature as write_signature,
    )

_HOMES = {
    "budget": ["Budget"],
    "bundle": ["Bundle", "refuse_to_replace", "sha256", "write_bundle"],
    "calibration": ["CalibrationRecord", "CurvePoint", "GateCalibration"],
    "chunks": ["VALID", "chunked"],
    "episode": ["Episode"],
    "episodes": ["EpisodeFile", "EpisodeSet", "load_episode", "load_stream"],
    "manifest": [
        "CalibrationRef",
        "DriftReceipt",
        "FileRef",
        "GraphRef",
        "Manifest",
        "ModelRef",
        "SCHEMA_VERSION",
        "TargetRef",
    ],
    "observation": ["Joints", "ObservationContract", "ResetRules", "Signal", "Term"],
    "records": ["canonical_json"],
    "receipts": ["InputsRef", "LowerPrecision", "Verification"],
    "sessions": ["batched", "check_rows", "one_row"],
    "specs": ["ConstantSpec", "GateSpec", "StateSpec", "StepSpec", "TensorSpec"],
    "split": ["Way", "given_by_read", "read_signature", "write_signature"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
