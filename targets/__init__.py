"""Devices as data: one TOML a device, every figure with its source."""

from stategate.targets.flash import load_storage, storage_names
from stategate.targets.profile import TargetProfile, generic, load, names, recognise

__all__ = [
    "TargetProfile",
    "generic",
    "load",
    "load_storage",
    "names",
    "recognise",
    "storage_names",
]
