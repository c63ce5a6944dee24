"""What building and loading have in common: TensorRT's bindings, its log, and where this is."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from stategate.contract import Bundle
from stategate.contract.errors import EngineError, StategateError
from stategate.contract.tensorrt_plan import PlanFingerprint, StoredPlan, stored_plans
from stategate.runtime.engines.cuda import Cuda

LIBRARIES = ("tensorrt", "tensorrt_rtx")


def load_tensorrt(library: str = "tensorrt") -> Any:
    """TensorRT's own bindings."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as missing:
        raise EngineError(
            f"the Python bindings of {library} are not installed",
            found=missing,
            remedy="on a Jetson they come with JetPack: apt install python3-libnvinfer, and a "
            "virtual environment with --system-site-packages; stategate doctor tells what fits "
            "this machine, docs/guides/jetson.md the rest"
            if library == "tensorrt"
            else "pip install tensorrt-rtx-cu13, for a desktop GPU; see docs/guides/jetson.md",
        ) from missing
    except (ImportError, OSError) as problem:
        raise EngineError(
            f"{library} is installed and cannot be loaded",
            found=problem,
            remedy="stategate doctor says what belongs together",
        ) from problem


def importable(libraries: Sequence[str]) -> tuple[list[Any], list[EngineError]]:
    """The bindings of each library that can be imported, and why the others cannot."""
    bindings, missing = [], []
    for library in libraries:
        try:
            bindings.append(load_tensorrt(library))
        except EngineError as problem:
            missing.append(problem)
    return bindings, missing


def local_fingerprint(
    trt: Any, cuda: Cuda, onnx_sha256: str, flags: tuple[str, ...] = (), root: Path = Path("/")
) -> PlanFingerprint:
    """The fingerprint of a plan that is built here and now."""
    text = ""
    with suppress(OSError):  # no Jetson has none
        text = (root / "etc/nv_tegra_release").read_text(errors="replace")
    release = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return PlanFingerprint(
        library=trt.__name__,
        version=trt.__version__,
        gpu=cuda.gpu,
        compute_capability=cuda.compute_capability,
        multiprocessors=cuda.multiprocessors,
        machine=platform.machine(),
        system=platform.system().lower(),
        cuda=cuda.version,
        l4t=f"{release[1]}.{release[2]}" if release else None,
        onnx_sha256=onnx_sha256,
        flags=flags,
    )


def make_log(trt: Any) -> Any:
    """A logger that keeps every message; its base class is the library's.

    It has ``text()``, everything, and ``problems()``, the messages of errors.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

        def text(self) -> str:
            return "".join(f"{severity}: {message}\n" for severity, message in self.lines)

        def problems(self) -> list[str]:
            bad = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            return [message for severity, message in self.lines if severity in bad]

    return Log()


def make_with_log(kind: Any, log: Any) -> Any:
    """A builder or runtime of TensorRT's, made with a log."""
    try:
        return kind(log)
    except TypeError as problem:  # so the bindings say it; the reason is in the log
        remedy = "stategate doctor says what belongs together"
        raise refusal(f"TensorRT cannot make a {kind.__name__}", log, remedy=remedy) from problem


def refusal(
    what: str,
    log: Any,
    *,
    remedy: str,
    expected: str | None = None,
    kind: type[StategateError] = EngineError,
) -> StategateError:
    """The error of something that TensorRT refused, with the reason from its log."""
    reason = "; ".join(log.problems()[-3:]) or "no reason given"
    # CUDA error 35: cudaErrorInsufficientDriver, which also stands where there is no driver.
    if re.search(
        r"insufficient|(cudaError|Cuda failure:|CUDA error|failure with error:) 35\b", reason, re.I
    ):
        remedy = "update the NVIDIA driver: it is too old for this TensorRT, or there is none"
    return kind(what, found=reason, expected=expected, remedy=remedy)


def local_plans(bundle: Bundle) -> list[tuple[StoredPlan, list[str]]]:
    """Every plan beside a bundle, and what keeps this machine from loading it; empty if nothing."""
    plans = stored_plans(bundle.path)
    if not plans:
        return []
    places: dict[str, PlanFingerprint] = {}
    missing: dict[str, str] = {}
    try:
        with closing(Cuda()) as cuda:
            for library in {stored.record.fingerprint.library for stored in plans}:
                try:
                    trt = load_tensorrt(library)
                except EngineError as problem:
                    missing[library] = problem.args[0].partition("\n")[0]
                else:
                    graph = bundle.manifest.step_graph.file.sha256
                    places[library] = local_fingerprint(trt, cuda, graph)
    except EngineError as problem:
        missing = dict.fromkeys(LIBRARIES, problem.args[0].partition("\n")[0])
    judged = []
    for stored in plans:
        library = stored.record.fingerprint.library
        place = places.get(library)
        hindrances = [missing[library]] if place is None else stored.hindrances(place)
        try:
            stored.read(stored.record.plan)
        except EngineError as problem:
            hindrances.append(problem.args[0].partition("\n")[0])
        judged.append((stored, hindrances))
    return judged
