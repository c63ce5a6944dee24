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
    from stategate.contract.calibration import CalibrationRecord as CalibrationRecord
    from stategate.contract.episode import Episode as Episode
    from stategate.contract.episodes import EpisodeSet as EpisodeSet, load_episode as load_episode
    from stategate.contract.manifest import FileRef as FileRef, Manifest as Manifest
    from stategate.contract.observation import ObservationContract as ObservationContract
    from stategate.contract.records import canonical_json as canonical_json
    from stategate.contract.specs import (
        ConstantSpec as ConstantSpec,
        GateSpec as GateSpec,
        StateSpec as StateSpec,
        StepSpec as StepSpec,
        TensorSpec as TensorSpec,
    )

_HOMES = {
    "budget": ["Budget"],
    "bundle": ["Bundle", "refuse_to_replace", "sha256", "write_bundle"],
    "calibration": ["CalibrationRecord"],
    "episode": ["Episode"],
    "episodes": ["EpisodeSet", "load_episode"],
    "manifest": ["FileRef", "Manifest"],
    "observation": ["ObservationContract"],
    "records": ["canonical_json"],
    "specs": ["ConstantSpec", "GateSpec", "StateSpec", "StepSpec", "TensorSpec"],
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
