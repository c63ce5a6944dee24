"""What NVIDIA's driver and TensorRT's wheels say of themselves.

Sources: the driver's library is asked with ``cuDriverGetVersion`` of the CUDA Driver API, which
needs no GPU. Which release of the driver brings which CUDA: "CUDA Toolkit and Corresponding Driver
Versions" in the CUDA Toolkit's release notes, and "Driver Requirements" in TensorRT's installation
guide (docs.nvidia.com/deeplearning/tensorrt/10.16.0/installing-tensorrt/prerequisites.html). What
the kernel's module writes, on PCs and on Jetsons: github.com/nix-community/nixGL, issues 121, 139.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from stategate.targets.detect import text_of

_NAME = "libcuda.so.1"
_LIBRARIES = ("lib/aarch64-linux-gnu", "lib/x86_64-linux-gnu", "lib64", "lib")
# First release of the driver for Linux that brings a CUDA.
_CUDA_OF_RELEASE = {580: (13, 0), 525: (12, 0), 470: (11, 4)}
# A Jetson's module may bear the number of Jetson Linux, such as 35.3.1; drivers are beyond it.
_FIRST_RELEASE = 100
_WHEEL = re.compile(r"(tensorrt(?:_rtx)?)_cu(\d+)_bindings-([\d.]+)\.dist-info")


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that is installed."""

    path: Path | None  # its library on the machine; None where only the loader finds it
    # what the kernel's module says, such as ``580.126.09``; None where none is loaded
    release: str | None
    # newest CUDA that it runs, major and minor; None where nothing says it
    cuda: tuple[int, int] | None
    is_exact: bool  # whether the library said so; otherwise it is the least that the release runs

    def __str__(self) -> str:
        """Release, CUDA and path, as far as they are known."""
        cuda = f"CUDA {self.cuda[0]}.{self.cuda[1]}" if self.is_exact and self.cuda else None
        path = str(self.path) if self.path else None
        return ", ".join(filter(None, (self.release, cuda, path))) or "loaded by the system"

    def runs(self, cuda: tuple[int, int]) -> bool:
        """Whether it is new enough for a CUDA, as far as that is known."""
        return self.cuda is None or self.cuda >= cuda


@dataclass(frozen=True, slots=True)
class Wheel:
    """Bindings of TensorRT that pip installed."""

    library: str  # ``tensorrt`` or ``tensorrt_rtx``
    version: str  # its version
    cuda: int  # major version of the CUDA that it is made for

    def name_for(self, cuda: int) -> str:
        """What pip calls the same for another CUDA."""
        return f"{self.library.replace('_', '-')}-cu{cuda}"


def driver_of(root: Path) -> Driver | None:
    """The driver of a machine, or None where there is none."""
    path = library_of(root, _NAME)
    cuda = _cuda_of_library() if root == Path("/") else None
    if path is None and cuda is None:
        return None
    line = text_of(root / "proc/driver/nvidia/version")
    release = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+)([\d.]*)", line)
    is_exact = cuda is not None
    if not is_exact and release is not None and int(release[1]) >= _FIRST_RELEASE:
        reached = [c for first, c in _CUDA_OF_RELEASE.items() if int(release[1]) >= first]
        cuda = max(reached, default=(0, 0))
    at = Path("/") / path.relative_to(root) if path else None
    return Driver(at, release[1] + release[2] if release else None, cuda, is_exact)


def release_for(cuda: int) -> int:
    """First release of the driver that runs programs of a major version of CUDA; 0 if unknown."""
    return min((r for r, c in _CUDA_OF_RELEASE.items() if c[0] == cuda), default=0)


def wheels_of(root: Path) -> list[Wheel]:
    """TensorRT's bindings that pip installed, where this Python or a tree's system looks."""
    if root == Path("/"):
        folders = [Path(folder) for folder in sys.path if folder]
    else:
        folders = [*root.glob("usr/lib/python3*/dist-packages")]
        folders += root.glob("usr/local/lib/python3*/dist-packages")
    names = {entry.name for folder in folders for entry in folder.glob("tensorrt*.dist-info")}
    parts = (_WHEEL.fullmatch(name) for name in sorted(names))
    return [Wheel(part[1], part[3], int(part[2])) for part in parts if part is not None]


def library_of(root: Path, name: str) -> Path | None:
    """Where a library of NVIDIA's lies, or None."""
    for folder in _LIBRARIES:
        for inner in ("", "tegra", "nvidia"):
            path = root / "usr" / folder / inner / name
            if path.exists():
                return path
    return None


def _cuda_of_library() -> tuple[int, int] | None:
    version = ctypes.c_int()
    try:
        library = ctypes.CDLL(_NAME)
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)
