"""Target profiles: read, list, and recognise this machine."""

from __future__ import annotations

import difflib
import platform
import sys
from importlib import resources
from typing import Any

import msgspec

from stategate.contract import TargetRef
from stategate.contract.errors import MissingDependencyError, TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ImportError as missing:
        raise MissingDependencyError("tomli", "export") from missing


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known about a device.

    Attributes:
        name: Its name on the command line.
        description: One line for the reader.
        machine: Processor architecture as ``uname -m`` prints it.
        engines: Engines that run there.
        precisions: Element types that are legal there, by engine.
        sources: Where each figure comes from, by field.
    """

    name: str
    description: str
    machine: str
    engines: tuple[str, ...]
    precisions: dict[str, tuple[str, ...]]
    sources: dict[str, str]

    def __post_init__(self) -> None:
        """Refuse figures without a source and precisions without an engine."""
        unsourced = sorted({"engines", "precisions"} - set(self.sources))
        if unsourced:
            raise ValueError(f"no source is given for {unsourced}")
        if set(self.precisions) != set(self.engines):
            raise ValueError("precisions must be given for each engine, and for no other")

    def ref(self) -> TargetRef:
        """What the manifest keeps of it."""
        return TargetRef(self.name, self.machine)


def _folder() -> Any:
    return resources.files("stategate.targets") / "profiles"


def names() -> list[str]:
    """Names of all known targets."""
    return sorted(p.name.removesuffix(".toml") for p in _folder().iterdir())


def load(name: str) -> TargetProfile:
    """Read one profile.

    Raises:
        TargetError: It does not exist, or contradicts itself.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise TargetError("unknown target", found=name, expected=" or ".join(near))
    raw = (_folder() / f"{name}.toml").read_text()
    try:
        return msgspec.convert(tomllib.loads(raw), TargetProfile)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as problem:
        raise TargetError(f"the profile of {name} is broken", found=str(problem)) from problem


def detect(machine: str | None = None) -> TargetProfile:
    """The profile of this machine, by its processor architecture.

    Raises:
        TargetError: No profile is for this architecture.
    """
    wanted = machine or platform.machine()
    for name in names():
        profile = load(name)
        if profile.machine == wanted:
            return profile
    raise TargetError(
        "no target profile is for this machine",
        found=wanted,
        expected=", ".join(sorted({load(name).machine for name in names()})),
        remedy="name one with --target",
    )
