"""A real file system on a loop device: what it writes, and what a copy of its disk gives back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_IMAGE_BYTES = 32 << 20
_SECTOR = 512
# Calls after which the power may go.
_CALLS = ("pwrite", "fsync", "fdatasync", "replace", "rename", "unlink")


def obstacle() -> str:
    """Why this machine cannot mount one, in words; empty where it can."""
    if os.geteuid() != 0:
        return "mounting a loop device takes root"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    return "" if Path("/dev/loop-control").exists() else "this system has no loop devices"


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """An image at a place; one that is not there is made, with an empty ext4 on it."""
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        _run("mkfs.ext4", "-q", str(image))
    place.mkdir(exist_ok=True)
    _run("mount", "-o", "loop,data=ordered", str(image), str(place))
    try:
        yield place
    finally:
        _run("umount", str(place))


def written_bytes(place: Path) -> int:
    """What the device that is mounted at a place was given to write since the machine started."""
    number = place.stat().st_dev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
    return int(stat.split()[6]) * _SECTOR


@contextmanager
def copies(image: Path, every: int, take: Callable[[Path], None]) -> Iterator[None]:
    """Copy the disk as it is after each so many calls that change files: the power went there."""
    real = {name: getattr(os, name) for name in _CALLS}
    calls = 0

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            answer = real[name](*args, **named)
            calls += 1
            if calls % every == 0:
                copy = image.with_name(f"{calls}.image")
                # By another process, so that its own calls are not seen.
                _run("cp", "--sparse=always", str(image), str(copy))
                take(copy)
            return answer

        return call

    for name in _CALLS:
        setattr(os, name, watched(name))
    try:
        yield
    finally:
        for name in _CALLS:
            setattr(os, name, real[name])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
