"""What a machine lacks for an engine, above all TensorRT: one finding a line, with a remedy.

Files are read, so that a copied tree of another machine can be looked at too; only this machine's
own driver is asked. Where JetPack puts its files: NVIDIA's Jetson Linux and TensorRT installation
guides.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from stategate.contract.errors import MissingDependencyError
from stategate.targets.detect import Host, detect
from stategate.targets.ladder import Release, load_ladder
from stategate.targets.nvidia import (
    Driver,
    Wheel,
    driver_of,
    library_of,
    release_for,
    wheels_of,
)

OLDEST_PYTHON = (3, 10)
OLDEST_CUDA = (11, 4)  # that of the driver; the engine calls cuGraphInstantiateWithFlags
_FEW_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``; ``note``, which hinders nothing; or ``missing``.
        what: Its name.
        told: What was found.
        remedy: What to do; empty where all is well.
    """

    level: Literal["ok", "note", "missing"]
    what: str
    told: str
    remedy: str = ""


def examine(root: Path = Path("/")) -> list[Finding]:
    """Look a machine over.

    Args:
        root: Where ``etc``, ``usr`` and the rest lie; a copied tree of another machine's.

    Raises:
        TargetError: ``root`` is no folder.
    """
    host = detect(root)
    jetson = any("tegra" in word for word in host.compatible)
    release = _release(host)
    found = [*_system(host, jetson, release), *_python(root, release)]
    driver, wheels = driver_of(root), [] if jetson else wheels_of(root)
    if driver is None and not jetson:
        told = "no NVIDIA driver: engines onnxruntime and native step here"
        return [*found, Finding("note", "gpu", told)]
    found += _driver(root, jetson, driver, wheels)
    if jetson or host.tensorrt is not None:
        found += _tensorrt(root, host, release)
    elif not wheels:
        cuda = 13 if driver is None or driver.runs((13, 0)) else 12
        remedy = f"pip install tensorrt-rtx-cu{cuda}, or step with onnxruntime or native"
        found.append(Finding("missing", "tensorrt", "no TensorRT and no TensorRT-RTX", remedy))
    return found + list(_pace(host))


def _system(host: Host, jetson: bool, release: Release | None) -> Iterator[Finding]:
    yield Finding("ok", "board", f"{host.board or 'unknown'}, {host.machine or 'unknown'}")
    if not jetson:
        return
    if host.l4t is None:
        yield Finding(
            "missing", "jetpack", "no Jetson Linux release is told", "flash the board with JetPack"
        )
    elif release is None:
        yield Finding(
            "note",
            "jetpack",
            f"Jetson Linux {host.l4t} is not in the ladder of releases",
            "compare CUDA and TensorRT below with docs/guides/jetson.md",
        )
    elif int(release.jetpack.split(".")[0]) < 5:
        yield Finding(
            "missing",
            "jetpack",
            f"{release.jetpack}: its Python and TensorRT are too old for any engine but native",
            "step with the C source of the bundle, or update the board where NVIDIA allows it",
        )
    else:
        yield Finding("ok", "jetpack", f"{release.jetpack}, Jetson Linux {host.l4t}")
    if host.cuda is None:
        yield Finding(
            "note",
            "cuda",
            "no toolkit under /usr/local/cuda",
            "none is needed to step; for trtexec: apt install nvidia-jetpack",
        )
    else:
        yield from _as_shipped("cuda", host.cuda, release.cuda if release else None)


def _as_shipped(what: str, found: str, shipped: str | None) -> Iterator[Finding]:
    if shipped is None or f"{found}.".startswith(f"{shipped}."):
        yield Finding("ok", what, found)
    else:
        yield Finding(
            "note",
            what,
            f"{found}, where this JetPack ships {shipped}",
            "build engines again after every change: stategate build-engine BUNDLE",
        )


def _python(root: Path, release: Release | None) -> Iterator[Finding]:
    here = root == Path("/")
    told = ".".join(map(str, sys.version_info[:2])) if here else _system_python(root, release)
    if told is None:
        yield Finding("note", "python", "which Python the system has is not told")
    elif tuple(map(int, told.split("."))) < OLDEST_PYTHON:
        yield Finding(
            "missing",
            "python",
            f"{told}, and stategate needs {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}",
            "install a newer Python beside it; TensorRT's bindings stay with the old one, so step "
            "with onnxruntime or native",
        )
    else:
        yield Finding("ok", "python", told)
    if here:
        for package, use in (("onnxruntime", "the engine onnxruntime"), ("onnx", "build-engine")):
            if find_spec(package) is None:
                extra = "ort" if package == "onnxruntime" else "tensorrt"
                yield Finding(
                    "note", package, f"not installed; {use} needs it",
                    f'pip install "stategate[{extra}]"',
                )  # fmt: skip


def _system_python(root: Path, release: Release | None) -> str | None:
    versions = [p.name.removeprefix("python") for p in root.glob("usr/bin/python3.[0-9]*")]
    numbers = [v for v in versions if v.replace(".", "").isdigit()]
    if numbers:
        return max(numbers, key=lambda v: tuple(map(int, v.split("."))))
    return release.python if release is not None else None


def _driver(
    root: Path, jetson: bool, driver: Driver | None, wheels: list[Wheel]
) -> Iterator[Finding]:
    if driver is None:
        yield Finding(
            "missing", "driver", "libcuda.so.1 is not there", "apt install nvidia-l4t-cuda"
        )
        return
    if not driver.runs(OLDEST_CUDA):
        newer = "JetPack 5.1" if jetson else f"release {release_for(OLDEST_CUDA[0])}"
        yield Finding(
            "missing",
            "driver",
            f"{driver}: too old, engines need one for CUDA {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]}",
            f"update it to {newer} or newer, or step with onnxruntime or native",
        )
    else:
        yield Finding("ok", "driver", str(driver))
    for wheel in wheels:
        name = f"{wheel.library} {wheel.version} for CUDA {wheel.cuda}"
        if not driver.runs((wheel.cuda, 0)):
            other = f", or pip install {wheel.name_for(12)}" if driver.runs((12, 0)) else ""
            yield Finding(
                "missing",
                "bindings",
                f"{name}, and the driver is too old for that",
                f"update the driver to release {release_for(wheel.cuda)} or newer{other}",
            )
        else:
            yield Finding("ok", "bindings", name)
    nodes = [root / "dev" / name for name in ("nvhost-gpu", "nvgpu/igpu0/as", "nvidia0")]
    there = [node for node in nodes if node.exists()]
    if not there:
        yield Finding(
            "missing",
            "gpu",
            "no device file: " + ", ".join(f"/{node.relative_to(root)}" for node in nodes),
            "load the driver, or hand the device to this container (--runtime nvidia)",
        )
    elif not os.access(there[0], os.R_OK | os.W_OK):
        yield Finding(
            "missing",
            "gpu",
            f"/{there[0].relative_to(root)} cannot be opened by this user",
            "sudo usermod -aG video,render $USER, and log in again",
        )
    else:
        yield Finding("ok", "gpu", f"/{there[0].relative_to(root)}")


def _tensorrt(root: Path, host: Host, release: Release | None) -> Iterator[Finding]:
    if host.tensorrt is None:
        yield Finding(
            "missing",
            "tensorrt",
            "neither its header nor its package is there",
            "apt install nvidia-jetpack, or python3-libnvinfer alone",
        )
        return
    told = re.match(r"(\d+)\.(\d+)", host.tensorrt)
    major, minor = (int(told[1]), int(told[2])) if told else (0, 0)
    if (major, minor) < (8, 5) or major == 9:
        yield Finding(
            "missing",
            "tensorrt",
            f"{host.tensorrt}, and engines are built by 8.5, 8.6, 10 and 11",
            "update it (on a Jetson: JetPack), or step with onnxruntime or native",
        )
    else:
        yield from _as_shipped("tensorrt", host.tensorrt, release.tensorrt if release else None)
    if library_of(root, f"libnvonnxparser.so.{major}") is None:
        yield Finding(
            "missing",
            "onnx parser",
            f"libnvonnxparser.so.{major} is not there",
            f"apt install libnvonnxparsers{major}",
        )
    if root == Path("/") and find_spec("tensorrt") is not None:
        yield Finding("ok", "bindings", "this Python imports tensorrt")
    else:
        yield from _bindings(root)
    if not (root / "usr/src/tensorrt/bin/trtexec").exists():
        yield Finding(
            "note", "trtexec", "not there; only build-engine.sh needs it",
            "apt install libnvinfer-bin",
        )  # fmt: skip


def _bindings(root: Path) -> Iterator[Finding]:
    packages = [*root.glob("usr/lib/python3*/dist-packages/tensorrt")]
    if not packages:
        yield Finding(
            "missing",
            "bindings",
            "TensorRT's Python bindings are not there",
            "apt install python3-libnvinfer",
        )
    elif root == Path("/"):
        yield Finding(
            "missing",
            "bindings",
            f"in {packages[0]}, where this Python does not look",
            "make the environment with: python3 -m venv --system-site-packages .venv",
        )
    else:
        compiled = [*packages[0].glob("tensorrt.cpython-*.so")]
        told = compiled[0].name.split("-")[1] if compiled else packages[0].parents[1].name
        yield Finding("ok", "bindings", f"for {told}")


def _pace(host: Host) -> Iterator[Finding]:
    if host.memory_bytes is not None and host.memory_bytes < _FEW_BYTES:
        yield Finding(
            "note", "memory", f"{host.memory_bytes >> 20} MiB in all", "give a --workspace-mib"
        )
    if host.power_mode is not None and not host.power_mode.startswith("MAXN"):
        yield Finding(
            "note",
            "power mode",
            f"{host.power_mode}; a plan built now is timed in it",
            "choose the mode of the robot before building: sudo nvpmodel -q",
        )
    if host.governor not in (None, "performance"):
        yield Finding(
            "note",
            "governor",
            f"{host.governor}; clocks follow the load, and single steps wait for them",
            "sudo jetson_clocks, where latency counts more than watts",
        )


def _release(host: Host) -> Release | None:
    try:
        releases = load_ladder().release
    except MissingDependencyError:
        return None
    known = [r for r in releases if r.jetpack == host.jetpack]
    known = known or [r for r in releases if host.l4t is not None and host.l4t in r.l4t]
    return known[-1] if known else None
