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
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from stategate.contract.errors import MissingDependencyError
from stategate.targets.detect import Host, detect
from stategate.targets.ladder import Release, load_ladder
from stategate.targets.nvidia import Driver, Wheel, driver_of, library_of, release_for, wheels_of

OLDEST_PYTHON = (3, 10)
OLDEST_CUDA = (11, 4)  # of the driver; the engine calls cuGraphInstantiateWithFlags
_LITTLE_MEMORY = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    # ``ok``; ``note``, which hinders nothing; or ``missing``
    level: Literal["ok", "note", "missing"]
    what: str  # its name
    fact: str = msgspec.field(name="found")  # what is there
    remedy: str = ""  # what to do; empty where all is well


def _ok(what: str, fact: str) -> Finding:
    return Finding("ok", what, fact)


def _note(what: str, fact: str, remedy: str = "") -> Finding:
    return Finding("note", what, fact, remedy)


def _missing(what: str, fact: str, remedy: str) -> Finding:
    return Finding("missing", what, fact, remedy)


def examine(root: Path = Path("/")) -> list[Finding]:
    """Look a machine over.

    Args:
        root: Where ``etc``, ``usr`` and the rest lie; a copied tree of another machine's.
    """
    host = detect(root)
    jetson = any("tegra" in word for word in host.compatible)
    release = _release(host)
    findings = [*_system(host, jetson, release), *_python(root, release)]
    driver, wheels = driver_of(root), [] if jetson else wheels_of(root)
    if driver is None and not jetson:
        engines = "no NVIDIA driver: engines onnxruntime and native step here"
        return [*findings, _note("gpu", engines)]
    findings += [*_driver(driver, jetson, wheels), _gpu(root)]
    if jetson or host.tensorrt is not None:
        findings += _tensorrt(root, host, release)
    elif not wheels:
        cuda = 13 if driver is None or driver.runs((13, 0)) else 12
        remedy = f"pip install tensorrt-rtx-cu{cuda}, or step with onnxruntime or native"
        findings.append(_missing("tensorrt", "no TensorRT and no TensorRT-RTX", remedy))
    return [*findings, *_speed(host)]


def _system(host: Host, jetson: bool, release: Release | None) -> Iterator[Finding]:
    yield _ok("board", f"{host.board or 'unknown'}, {host.machine or 'unknown'}")
    if not jetson:
        return
    if host.l4t is None:
        yield _missing(
            "jetpack", "no release of Jetson Linux is named", "flash the board with JetPack"
        )
    elif release is None:
        fact = f"Jetson Linux {host.l4t} is not in the ladder of releases"
        yield _note("jetpack", fact, "compare CUDA and TensorRT below with docs/guides/jetson.md")
    elif int(release.jetpack.split(".")[0]) < 5:
        yield _missing(
            "jetpack",
            f"{release.jetpack}: its Python and TensorRT are too old for any engine but native",
            "step with the C source of the bundle, or update the board where NVIDIA allows it",
        )
    else:
        yield _ok("jetpack", f"{release.jetpack}, Jetson Linux {host.l4t}")
    if host.cuda is None:
        remedy = "none is needed to step; for trtexec: apt install nvidia-jetpack"
        yield _note("cuda", "no toolkit under /usr/local/cuda", remedy)
    else:
        yield _as_shipped("cuda", host.cuda, release.cuda if release else None)


def _as_shipped(what: str, version: str, shipped: str | None) -> Finding:
    if shipped is None or f"{version}.".startswith(f"{shipped}."):
        return _ok(what, version)
    remedy = "build engines again after every change: stategate device build-engine BUNDLE"
    return _note(what, f"{version}, where this JetPack ships {shipped}", remedy)


def _python(root: Path, release: Release | None) -> Iterator[Finding]:
    local = root == Path("/")
    python = ".".join(map(str, sys.version_info[:2])) if local else _system_python(root, release)
    if python is None:
        yield _note("python", "nothing says which Python the system has")
    elif tuple(map(int, python.split("."))) < OLDEST_PYTHON:
        yield _missing(
            "python",
            f"{python}, and stategate needs {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}",
            "install a newer Python as well; TensorRT's bindings stay with the old one, so step "
            "with onnxruntime or native",
        )
    else:
        yield _ok("python", python)
    packages = [
        ("onnxruntime", "ort", "the engine onnxruntime"),
        ("onnx", "tensorrt", "build-engine"),
    ]
    for package, extra, user in packages if local else ():
        if find_spec(package) is None:
            remedy = f'pip install "stategate[{extra}]"'
            yield _note(package, f"not installed; {user} needs it", remedy)


def _system_python(root: Path, release: Release | None) -> str | None:
    versions = [p.name.removeprefix("python") for p in root.glob("usr/bin/python3.[0-9]*")]
    numbers = [v for v in versions if v.replace(".", "").isdigit()]
    if numbers:
        return max(numbers, key=lambda v: tuple(map(int, v.split("."))))
    return release.python if release is not None else None


def _driver(driver: Driver | None, jetson: bool, wheels: list[Wheel]) -> Iterator[Finding]:
    if driver is None:
        yield _missing("driver", "libcuda.so.1 is not there", "apt install nvidia-l4t-cuda")
        return
    if driver.runs(OLDEST_CUDA):
        yield _ok("driver", str(driver))
    else:
        newer = "JetPack 5.1" if jetson else f"release {release_for(OLDEST_CUDA[0])}"
        yield _missing(
            "driver",
            f"{driver}: too old, engines need one for CUDA {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]}",
            f"update it to {newer} or newer, or step with onnxruntime or native",
        )
    for wheel in wheels:
        name = f"{wheel.library} {wheel.version} for CUDA {wheel.cuda}"
        if driver.runs((wheel.cuda, 0)):
            yield _ok("bindings", name)
            continue
        other = f", or pip install {wheel.name_for(12)}" if driver.runs((12, 0)) else ""
        remedy = f"update the driver to release {release_for(wheel.cuda)} or newer{other}"
        yield _missing("bindings", f"{name}, and the driver is too old for that", remedy)


def _gpu(root: Path) -> Finding:
    names = [f"/dev/{name}" for name in ("nvhost-gpu", "nvgpu/igpu0/as", "nvidia0")]
    present = [name for name in names if (root / name[1:]).exists()]
    if not present:
        remedy = "load the driver, or hand the device to this container (--runtime nvidia)"
        return _missing("gpu", f"no device file: {', '.join(names)}", remedy)
    if not os.access(root / present[0][1:], os.R_OK | os.W_OK):
        remedy = "sudo usermod -aG video,render $USER, and log in again"
        return _missing("gpu", f"this user may not open {present[0]}", remedy)
    return _ok("gpu", present[0])


def _tensorrt(root: Path, host: Host, release: Release | None) -> Iterator[Finding]:
    if host.tensorrt is None:
        remedy = "apt install nvidia-jetpack, or python3-libnvinfer alone"
        yield _missing("tensorrt", "neither its header nor its package is there", remedy)
        return
    numbers = re.match(r"(\d+)\.(\d+)", host.tensorrt)
    major, minor = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if (major, minor) < (8, 5) or major == 9:
        fact = f"{host.tensorrt}, and engines are built by 8.5, 8.6, 10 and 11"
        remedy = "update it (on a Jetson: JetPack), or step with onnxruntime or native"
        yield _missing("tensorrt", fact, remedy)
    else:
        yield _as_shipped("tensorrt", host.tensorrt, release.tensorrt if release else None)
    parser = f"libnvonnxparser.so.{major}"
    if library_of(root, parser) is None:
        yield _missing(
            "onnx parser", f"{parser} is not there", f"apt install libnvonnxparsers{major}"
        )
    if root == Path("/") and find_spec("tensorrt") is not None:
        yield _ok("bindings", "this Python imports tensorrt")
    else:
        yield _bindings(root)
    if not (root / "usr/src/tensorrt/bin/trtexec").exists():
        fact = "not there; only build-engine.sh needs it"
        yield _note("trtexec", fact, "apt install libnvinfer-bin")


def _bindings(root: Path) -> Finding:
    packages = [*root.glob("usr/lib/python3*/dist-packages/tensorrt")]
    if not packages:
        fact = "TensorRT's Python bindings are not there"
        return _missing("bindings", fact, "apt install python3-libnvinfer")
    if root == Path("/"):
        remedy = "make the environment with: python3 -m venv --system-site-packages .venv"
        return _missing("bindings", f"in {packages[0]}, where this Python does not look", remedy)
    compiled = [*packages[0].glob("tensorrt.cpython-*.so")]
    python = compiled[0].name.split("-")[1] if compiled else packages[0].parents[1].name
    return _ok("bindings", f"for {python}")


def _speed(host: Host) -> Iterator[Finding]:
    if host.memory_bytes is not None and host.memory_bytes < _LITTLE_MEMORY:
        yield _note("memory", f"{host.memory_bytes >> 20} MiB in all", "give a --workspace-mib")
    if host.power_mode is not None and not host.power_mode.startswith("MAXN"):
        remedy = "choose the mode of the robot before building: sudo nvpmodel -q"
        yield _note("power mode", f"{host.power_mode}; a plan built now is timed in it", remedy)
    if host.governor not in (None, "performance"):
        fact = f"{host.governor}; clocks follow the load, and single steps wait for them"
        yield _note("governor", fact, "sudo jetson_clocks, where latency counts more than watts")


def _release(host: Host) -> Release | None:
    """The rung of the ladder that this is: by JetPack's number, else by that of Jetson Linux."""
    try:
        ladder = load_ladder()
    except MissingDependencyError:
        return None
    rungs = [release for release in ladder.release if release.jetpack == host.jetpack]
    rungs = rungs or [*ladder.of_l4t(host.l4t or "")]
    return rungs[-1] if rungs else None
