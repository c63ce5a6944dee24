"""Target profiles: read, list, and recognise this machine."""

from __future__ import annotations

import platform

import msgspec

from stategate.contract import TargetRef
from stategate.contract.errors import TargetError
from stategate.contract.precision import PrecisionPlan
from stategate.targets.rows import read_row, row_names

_FOLDER = "profiles"


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known about a device.

    Attributes:
        name: Its name on the command line.
        description: One line for the reader.
        machine: Processor architecture as ``uname -m`` prints it.
        engines: Engines that run there.
        precisions: Element types that are legal there, by engine.
        sources: Where each figure comes from, by field.
        storage: Names of the media that it may carry; empty where that is not known.
    """

    name: str
    description: str
    machine: str
    engines: tuple[str, ...]
    precisions: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    storage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse figures without a source and precisions without an engine."""
        figures = {"engines", "precisions"} | ({"storage"} if self.storage else set())
        unsourced = sorted(figures - set(self.sources))
        if unsourced:
            raise ValueError(f"no source is given for {unsourced}")
        if set(self.precisions) != set(self.engines):
            raise ValueError("precisions must be given for each engine, and for no other")

    def check(self, plan: PrecisionPlan, engine: str = "onnxruntime") -> None:
        """Refuse a plan that needs an element type that is not known to work there.

        Raises:
            TargetError: It does.
        """
        legal = self.precisions.get(engine, ())
        lacking = sorted(plan.kinds - set(legal))
        if lacking:
            raise TargetError(
                f"{self.name} does not run {' and '.join(lacking)} with {engine}",
                found=f"precision {plan.label}",
                expected=f"{', '.join(legal) or 'nothing'}: {self.sources['precisions']}",
                remedy="choose another --precision or --target",
            )

    def ref(self) -> TargetRef:
        """What the manifest keeps of it."""
        return TargetRef(self.name, self.machine)


def names() -> list[str]:
    """Names of all known targets."""
    return row_names(_FOLDER)


def load(name: str) -> TargetProfile:
    """Read one profile.

    Raises:
        TargetError: It does not exist, or contradicts itself.
    """
    return read_row(_FOLDER, name, "target", TargetProfile)


def generic(machine: str | None = None) -> TargetProfile:
    """The profile of any machine of an architecture; of this one's if left out.

    Raises:
        TargetError: No profile is for this architecture.
    """
    wanted = machine or platform.machine()
    known = {name for name in names() if name.startswith("cpu-")}
    name = f"cpu-{wanted.replace('_', '-')}"
    if name in known:
        return load(name)
    raise TargetError(
        "no target profile is for this machine",
        found=wanted,
        expected=", ".join(sorted(load(name).machine for name in known)),
        remedy="name one with --target",
    )
