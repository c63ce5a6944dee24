"""What a storage device says of its own wear, read from /sys without privileges.

Sources: the kernel's documentation of ``block/stat`` (field 7: sectors written, of 512 bytes
whatever the device's own sectors are) and of the eMMC attributes ``life_time`` and
``pre_eol_info``, which are EXT_CSD 268, 269 and 267 of JESD84-B51.

An NVMe drive counts its wear too (``percentage_used``), but Linux gives it only through an ioctl
for administrators, and an SD card has no counter at all. What is not shown is None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SECTOR_BYTES = 512
_SECTORS_WRITTEN = 6  # position of field 7
_LIFE_TIME_STEP_PERCENT = 10
_LIFE_TIME_EXCEEDED = 0x0B
_RESERVE: dict[int, Literal["normal", "warning", "urgent"]] = {
    1: "normal",
    2: "warning",
    3: "urgent",
}

Kind = Literal["emmc", "sd", "nvme", "other"]


@dataclass(frozen=True, slots=True)
class DeviceWear:
    """One reading of one block device; None is what the system does not show."""

    device: str | None = None  # name of the whole device, such as ``mmcblk0``
    kind: Kind | None = None  # what it is
    # bytes that this host wrote to it since it started, by anyone
    host_bytes_since_boot: int | None = None
    # upper end of the step of ten that an eMMC reports for its worse kind of cell; 110 where the
    # rated life is exceeded
    life_used_percent: int | None = None
    # state of an eMMC's spare blocks: ``warning`` at 80 % used, ``urgent`` at 90 %
    reserve: Literal["normal", "warning", "urgent"] | None = None

    @property
    def estimate(self) -> bool:
        """Whether wear can only be estimated: the device does not say how far it is worn."""
        return self.life_used_percent is None


def read_wear(path: str | Path, root: str | Path = "/") -> DeviceWear:
    """Read the counters of the device that holds a path.

    Args:
        path: A file or folder on it, such as the folder of snapshots.
        root: Where ``sys`` lies; another folder in tests.

    Returns:
        What is shown. Everything is None where the path is not there, or where its file system
        lies on no single block device (tmpfs, overlayfs, btrfs, a network).
    """
    folder = block_device(path, root)
    if folder is None:
        return DeviceWear()
    return DeviceWear(
        device=folder.name,
        kind=_kind(folder),
        host_bytes_since_boot=_host_bytes(folder),
        life_used_percent=_life_used_percent(folder),
        reserve=_reserve(folder),
    )


def block_device(path: str | Path, root: str | Path = "/") -> Path | None:
    """Folder in /sys of the whole device that holds a path; None where there is none."""
    try:
        number = Path(path).stat().st_dev
    except OSError:
        return None
    folder = Path(root) / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    if not folder.is_dir():
        return None
    folder = folder.resolve()
    # A partition's folder lies in that of its device.
    return folder.parent if (folder / "partition").exists() else folder


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _kind(folder: Path) -> Kind:
    if folder.name.startswith("nvme"):
        return "nvme"
    card = _text(folder / "device" / "type").strip()
    if card == "MMC":
        return "emmc"
    return "sd" if card == "SD" else "other"


def _host_bytes(folder: Path) -> int | None:
    fields = _text(folder / "stat").split()
    try:
        return int(fields[_SECTORS_WRITTEN]) * _SECTOR_BYTES
    except (IndexError, ValueError):
        return None


def _hex_values(path: Path) -> list[int]:
    try:
        return [int(word, 16) for word in _text(path).split()]
    except ValueError:
        return []


def _life_used_percent(folder: Path) -> int | None:
    # Zero stands for "not defined"; an eMMC may report one of its two kinds of cell alone.
    steps = [v for v in _hex_values(folder / "device" / "life_time") if v > 0]
    if not steps or max(steps) > _LIFE_TIME_EXCEEDED:
        return None
    return max(steps) * _LIFE_TIME_STEP_PERCENT


def _reserve(folder: Path) -> Literal["normal", "warning", "urgent"] | None:
    values = _hex_values(folder / "device" / "pre_eol_info")
    return _RESERVE.get(values[0]) if values else None
