"""Devices as data: one TOML a device, every figure with its source."""

from stategate.targets.profile import TargetProfile, detect, load, names

__all__ = ["TargetProfile", "detect", "load", "names"]
