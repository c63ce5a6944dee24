"""The ladder of JetPack releases: which Jetson Linux, CUDA, TensorRT and Python come together."""

from __future__ import annotations

from datetime import date

import msgspec

from stategate.targets.toml_tables import read_table


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rung: what a release of JetPack brings; None is what no source says."""

    jetpack: str  # its number
    l4t: tuple[str, ...]  # releases of Jetson Linux that carry it
    ubuntu: str  # release of the system
    python: str  # version of the system's Python
    cuda: str | None  # version of CUDA
    tensorrt: str | None  # version of TensorRT that it ships
    source: str  # who says so
    date: date  # when that was read


class Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rungs, oldest first."""

    release: tuple[Release, ...]

    def __post_init__(self) -> None:
        """Refuse a release that is listed twice."""
        names = [release.jetpack for release in self.release]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"release: JetPack {', '.join(twice)} is there twice")

    def of_l4t(self, l4t: str) -> tuple[Release, ...]:
        """Releases of JetPack that a release of Jetson Linux may be; empty where none is known."""
        return tuple(release for release in self.release if l4t in release.l4t)


def load_ladder() -> Ladder:
    """Read the ladder."""
    return read_table("ladders", "jetpack", "ladder", Ladder)
