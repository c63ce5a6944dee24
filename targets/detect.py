"""What this machine is, from files that need no privileges; what they do not say stays unknown.

Sources of the formats: proc(5) and sysfs of the kernel's documentation; ``/etc/nv_tegra_release``,
``/etc/nvpmodel.conf`` and ``/var/lib/nvpmodel/status`` as Jetson Linux writes them (read beside
jetson_stats); numbers of processor parts from the kernel's ``arch/arm64/include/asm/cputype.h``.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stategate.contract.errors import MissingDependencyError, TargetError
from stategate.targets.ladder import load_ladder

_SECTOR_BYTES = 512
# (implementer, part) -> name
_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}
# Nobody has these anywhere but on a Jetson, so their absence elsewhere is no news.
_JETSON_ONLY = ("jetpack", "l4t", "power_mode")


@dataclass(frozen=True, slots=True)
class Host:
    """A machine as it describes itself; None is what no file says."""

    machine: str | None  # architecture as ``uname -m`` prints it
    board: str | None  # maker's name of the board or computer
    soc: str | None  # system on a chip, such as ``nvidia,tegra234``; None on a PC
    # what the device tree says that it is compatible with, most special first
    compatible: tuple[str, ...]
    cpu: str | None  # processor, kinds of cores joined by ``+``
    cores: int | None  # processors that the kernel runs
    # what the kernel manages; less than is soldered on, by firmware's share
    memory_bytes: int | None
    kernel: str | None  # its release
    jetpack: str | None  # release of JetPack
    l4t: str | None  # release of Jetson Linux
    cuda: str | None  # version of the toolkit under ``/usr/local/cuda``
    tensorrt: str | None  # version whose headers or package are installed
    power_mode: str | None  # name in ``nvpmodel.conf`` of the mode in force
    governor: str | None  # frequency governor of the first processor
    storage: str | None  # the device that holds the root file system, its kind and size
    unknowns: tuple[str, ...]  # one sentence for each thing that no file says


def detect(root: Path = Path("/")) -> Host:
    """Read what a machine says of itself."""
    if not root.is_dir():
        raise TargetError(
            "there is no such root", found=root, expected="a folder with proc and sys"
        )
    unknowns: list[str] = []
    compatible = tuple(w for w in text_of(root / "proc/device-tree/compatible").split("\0") if w)
    cpuinfo = text_of(root / "proc/cpuinfo")
    l4t = _l4t(root)
    facts = {
        "machine": _machine(root, cpuinfo),
        "board": _board(root),
        "soc": compatible[-1] if compatible else None,
        "cpu": _cpu(cpuinfo),
        "cores": len(re.findall(r"^processor\s*:", cpuinfo, re.M)) or None,
        "memory_bytes": _memory_bytes(root),
        "kernel": text_of(root / "proc/sys/kernel/osrelease") or None,
        "jetpack": _jetpack(root, l4t, unknowns),
        "l4t": l4t,
        "cuda": _cuda(root),
        "tensorrt": _tensorrt(root),
        "power_mode": _power_mode(root, unknowns),
        "governor": text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "storage": _storage(root),
    }
    jetson = any("tegra" in word for word in compatible)
    for name, reason in _REASONS.items():
        explained = any(sentence.startswith(f"{name}:") for sentence in unknowns)
        if facts[name] is None and not explained and (jetson or name not in _JETSON_ONLY):
            unknowns.append(f"{name}: {reason}")
    return msgspec.convert(facts | {"compatible": compatible, "unknowns": tuple(unknowns)}, Host)


# Why a fact is unknown, where nothing more special is known.
_REASONS = {
    "machine": "neither /proc/sys/kernel/arch nor /proc/cpuinfo says it",
    "board": "no model in the device tree and no product name in DMI",
    "soc": "there is no device tree, as on any PC",
    "cpu": "/proc/cpuinfo names no model and no part that is known",
    "cores": "/proc/cpuinfo lists none",
    "memory_bytes": "/proc/meminfo has no MemTotal",
    "kernel": "/proc/sys/kernel/osrelease cannot be read",
    "jetpack": "no package nvidia-jetpack, and no L4T to look it up by",
    "l4t": "neither /etc/nv_tegra_release nor the package nvidia-l4t-core is there",
    "cuda": "no version file under /usr/local/cuda",
    "tensorrt": "neither NvInferVersion.h nor a package libnvinfer is there",
    "power_mode": "/etc/nvpmodel.conf is not there",
    "governor": "the kernel shows no cpufreq; a virtual machine has none",
    "storage": "the root file system lies on no single block device",
}


def text_of(path: Path) -> str:
    """A small file without its trailing newline or NUL; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _machine(root: Path, cpuinfo: str) -> str | None:
    if root == Path("/"):
        return platform.machine()
    arch = text_of(root / "proc/sys/kernel/arch")  # since Linux 6.1
    if arch:
        return arch
    if re.search(r"^CPU architecture\s*:\s*8", cpuinfo, re.M):
        return "aarch64"
    return "x86_64" if re.search(r"^flags\s*:.*\blm\b", cpuinfo, re.M) else None


def _board(root: Path) -> str | None:
    model = text_of(root / "proc/device-tree/model")
    if model:
        return model
    dmi = root / "sys/class/dmi/id"
    words = (text_of(dmi / "sys_vendor"), text_of(dmi / "product_name"))
    return " ".join(word for word in words if word) or None


def _cpu(cpuinfo: str) -> str | None:
    pairs = zip(
        re.findall(r"^CPU implementer\s*:\s*0x([\da-f]+)", cpuinfo, re.M),
        re.findall(r"^CPU part\s*:\s*0x([\da-f]+)", cpuinfo, re.M),
        strict=False,
    )
    parts = [_PARTS.get((int(who, 16), int(part, 16))) for who, part in pairs]
    # An Arm kernel's "model name" is that of the architecture, so a known part comes first.
    names = list(dict.fromkeys(part for part in parts if part))
    if names:
        return " + ".join(names)
    model = re.search(r"^model name\s*:\s*(.+)", cpuinfo, re.M)
    return " ".join(model[1].split()) if model else None


def _memory_bytes(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB", text_of(root / "proc/meminfo"), re.M)
    return int(total[1]) * 1024 if total else None


def _package(root: Path, name: str) -> str | None:
    """Version of an installed Debian package; ``name`` is a pattern."""
    status = text_of(root / "var/lib/dpkg/status")
    block = re.search(rf"^Package: {name}\n(?:.+\n)*?Version: (\S+)", status, re.M)
    return block[1] if block else None


def _l4t(root: Path) -> str | None:
    release = text_of(root / "etc/nv_tegra_release")
    numbers = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    if numbers:
        return f"{numbers[1]}.{numbers[2]}"
    package = _package(root, "nvidia-l4t-core")
    return package.split("-")[0] if package else None


def _jetpack(root: Path, l4t: str | None, unknowns: list[str]) -> str | None:
    package = _package(root, "nvidia-jetpack")
    if package or l4t is None:
        return re.split(r"[-+]", package)[0] if package else None
    try:
        releases = load_ladder().of_l4t(l4t)
    except MissingDependencyError:
        unknowns.append(f"jetpack: L4T {l4t} cannot be looked up without tomli")
        return None
    if len(releases) == 1:
        return releases[0].jetpack
    either = " or ".join(release.jetpack for release in releases)
    choice = f"that is {either}" if either else "which is not in the ladder of releases"
    unknowns.append(f"jetpack: no package nvidia-jetpack; this is L4T {l4t}, {choice}")
    return None


def _cuda(root: Path) -> str | None:
    folder = root / "usr/local/cuda"
    record = text_of(folder / "version.json")
    version = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', record)
    version = version or re.match(r"CUDA Version ([\d.]+)", text_of(folder / "version.txt"))
    return version[1] if version else None


def _tensorrt(root: Path) -> str | None:
    for header in sorted((root / "usr/include").glob("*/NvInferVersion.h")):
        # TensorRT 11 defines these through TRT_*_ENTERPRISE; then the package has to say.
        digits = dict(
            re.findall(r"#define NV_TENSORRT_(MAJOR|MINOR|PATCH|BUILD)\s+(\d+)", text_of(header))
        )
        if {"MAJOR", "MINOR", "PATCH"} <= set(digits):
            order = ("MAJOR", "MINOR", "PATCH", "BUILD")
            return ".".join(digits[key] for key in order if key in digits)
    package = _package(root, r"libnvinfer\d+")
    return package.split("-")[0] if package else None


def _power_mode(root: Path, unknowns: list[str]) -> str | None:
    conf = text_of(root / "etc/nvpmodel.conf")
    names = {
        int(number): name
        for number, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", conf)
    }
    if not names:
        return None
    status = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    if status is None:
        # Not the configured default: somebody may have chosen another one since.
        unknowns.append("power_mode: /var/lib/nvpmodel/status does not say which is in force")
        return None
    if int(status[1]) not in names:
        unknowns.append(f"power_mode: mode {int(status[1])} is not in /etc/nvpmodel.conf")
        return None
    return str(names[int(status[1])])


def _storage(root: Path) -> str | None:
    mounted = re.findall(r"^/dev/(\S+) / ", text_of(root / "proc/mounts"), re.M)
    for folder in sorted((root / "sys/block").glob("*")):
        # A partition's name is that of its device and more: sda1, nvme0n1p1, mmcblk0p1.
        partition = re.compile(rf"{re.escape(folder.name)}(p?\d+)?")
        if any(map(partition.fullmatch, mounted)):
            sectors = text_of(folder / "size")
            size = f", {int(sectors) * _SECTOR_BYTES / 1e9:.0f} GB" if sectors.isdigit() else ""
            return f"{folder.name} ({_kind(folder)}{size})"
    return None


def _kind(folder: Path) -> str:
    if folder.name.startswith("nvme"):
        return "NVMe"
    return {"MMC": "eMMC", "SD": "SD card"}.get(text_of(folder / "device/type"), "disk")
