"""From a bundle to a plan beside it, on the device that will step it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from stategate.contract import Bundle, FileRef, canonical_json, sha256
from stategate.contract.engine_plan import (
    LOG,
    PLAN,
    RECORD,
    TIMING_CACHE,
    VARIANT,
    PlanRecord,
    StoredPlan,
    plans_folder,
    stored_plans,
)
from stategate.contract.errors import BuildError, ParityError
from stategate.export.tensorrt_build import Built, Settings, build_plan, wanted_flags
from stategate.export.tensorrt_rules import Generation, generation_of
from stategate.export.tensorrt_variant import Variant, variant
from stategate.runtime.cuda import Cuda
from stategate.runtime.golden import Replay, replay
from stategate.runtime.tensorrt_api import created, fingerprint_here, make_log, why

SCRIPT = "build-engine.sh"
TOLERANCE = 1e-4


def variant_of(bundle: Bundle, generation: Generation) -> Variant:
    """The form of a bundle's step for a generation of TensorRT.

    Raises:
        GraphError: That generation would not take it.
        BuildError: The bundle is for a pool.
    """
    manifest = bundle.manifest
    if manifest.sessions > 1:
        raise BuildError(
            "a pool cannot step with tensorrt",
            found=f"a bundle of {manifest.sessions} sessions",
            remedy="export it with --sessions 1, or step it with onnxruntime",
        )
    return variant(bundle.read(manifest.step_graph.file), manifest.step, generation)


@contextmanager
def sole_builder(bundle: Bundle) -> Iterator[None]:
    """Keep other builders from a bundle's plans, and clear away what a killed one left.

    The bundle's folder itself is locked, which writes nothing and ends with the process.

    Raises:
        BuildError: Another process builds for this bundle.
    """
    handle = os.open(bundle.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise BuildError(
                "another process builds an engine of this bundle",
                found=bundle.path,
                remedy="wait until it is done",
            ) from problem
        for left in plans_folder(bundle.path).glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def build_engine(
    bundle: Bundle,
    trt: Any,
    cuda: Cuda,
    settings: Settings,
    *,
    cuda_graph: bool = True,
    new_timing_cache: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> StoredPlan:
    """Build a plan and put it beside the bundle, where an older one for the same place goes.

    Args:
        bundle: What to build of.
        trt: TensorRT's bindings.
        cuda: The GPU.
        settings: What the build may use; its timing cache is that of the older plan.
        cuda_graph: Whether steps shall be captured.
        new_timing_cache: Whether to measure anew instead of with the older plan's times.
        report: Called with the percentage done.

    Raises:
        GraphError: TensorRT would not take the graph; found before anything is built.
        BuildError: It cannot be built, or not with the pinned timing cache.
    """
    form = variant_of(bundle, generation_of(trt.__version__, trt.__name__))
    free = cuda.memory()[0]
    if settings.workspace_bytes > free:
        raise BuildError(
            "the GPU has less free memory than the builder may use",
            found=f"{free >> 20} MiB free on {cuda.gpu}",
            expected=f"{settings.workspace_bytes >> 20} MiB",
            remedy="end what else runs on the GPU, or give a smaller --workspace-mib",
        )
    if not new_timing_cache:
        settings = replace(settings, timing_cache=_earlier_times(bundle, trt, cuda))
    built = build_plan(trt, form.graph, settings, report)
    return _store(bundle, trt, cuda, form, built, settings, cuda_graph, "python")


def adopt_plan(bundle: Bundle, plan: Path, trt: Any, cuda: Cuda, settings: Settings) -> StoredPlan:
    """Put a plan that trtexec built here beside the bundle.

    Raises:
        BuildError: It cannot be read or loaded.
        GraphError: TensorRT would not take the bundle's graph.
    """
    form = variant_of(bundle, generation_of(trt.__version__, trt.__name__))
    try:
        raw = plan.read_bytes()
    except OSError as problem:
        raise BuildError("the plan cannot be read", found=problem) from problem
    log = make_log(trt)
    runtime: Any = created(trt.Runtime, log)
    if runtime.deserialize_cuda_engine(raw) is None:
        told, remedy = why(log)
        raise BuildError(
            f"TensorRT {trt.__version__} does not load {plan.name}",
            found=told,
            expected="a plan that was built here, by this version",
            remedy=remedy or f"run {SCRIPT} again on this device",
        )
    built = Built(raw, ("trtexec",), b"", log.text())
    return _store(bundle, trt, cuda, form, built, settings, True, "trtexec")


def checked(stored: StoredPlan, bundle: Bundle, tolerance: float = TOLERANCE) -> Replay | None:
    """Replay the golden episode with a plan that was just stored; it is removed if that fails.

    Returns:
        The comparison, or None where the bundle has no golden episode.

    Raises:
        ParityError: The plan does not behave like the model.
        EngineError: It cannot be loaded.
    """
    receipt = bundle.manifest.verification
    allowed = max(tolerance, (receipt.tolerance or 0.0) if receipt else 0.0)
    try:
        seen = replay(bundle.path, allowed, "tensorrt")
        if seen is not None and not seen.passed:
            raise ParityError(
                "the engine does not repeat the golden episode",
                found=f"output error {seen.max_output_error:.3g}, state error "
                f"{seen.max_state_error:.3g}, {seen.gate_flips} gate flips",
                expected=f"at most {allowed:g} and no flip",
                remedy="step this bundle with onnxruntime; the engine was removed",
            )
    except BaseException:  # an interrupt too: what was not checked must not be loaded later
        shutil.rmtree(stored.folder, ignore_errors=True)
        raise
    return seen


def write_script(bundle: Bundle, version: str, settings: Settings) -> Path:
    """Write the graph for a version of TensorRT, and a script that has trtexec build it.

    Args:
        bundle: What to build of.
        version: Such as ``10.3``; TensorRT need not be here.
        settings: Its workspace.

    Returns:
        The script.

    Raises:
        GraphError: That version would not take the graph.
        TargetError: It is not supported.
    """
    generation = generation_of(version)
    form = variant_of(bundle, generation)
    folder = plans_folder(bundle.path) / f"trtexec-{generation.name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VARIANT).write_bytes(form.graph)
    script = folder / SCRIPT
    script.write_text(_script(bundle.path, form.graph, generation, settings))
    script.chmod(0o755)
    return script


def _earlier_times(bundle: Bundle, trt: Any, cuda: Cuda) -> bytes | None:
    here = fingerprint_here(trt, cuda, bundle.manifest.step_graph.file.sha256)
    for stored in stored_plans(bundle.path):
        record = stored.record
        same = not record.fingerprint.differences(
            msgspec.structs.replace(here, flags=record.fingerprint.flags)
        )
        if same and record.timing_cache_sha256 is not None:
            return stored.read(FileRef(TIMING_CACHE, record.timing_cache_sha256))
    return None


def _store(
    bundle: Bundle,
    trt: Any,
    cuda: Cuda,
    form: Variant,
    built: Built,
    settings: Settings,
    cuda_graph: bool,
    built_by: str,
) -> StoredPlan:
    place = fingerprint_here(trt, cuda, bundle.manifest.step_graph.file.sha256, built.flags)
    record = PlanRecord(
        fingerprint=place,
        plan=FileRef(PLAN, sha256(built.plan)),
        variant=FileRef(VARIANT, sha256(form.graph)),
        plan_bytes=len(built.plan),
        guarded=form.guarded,
        cuda_graph=cuda_graph,
        stripped=settings.strip_weights,
        workspace_bytes=settings.workspace_bytes,
        timing_cache_sha256=sha256(built.timing_cache) if built.timing_cache else None,
        built_by=built_by,
    )
    generation = generation_of(trt.__version__, trt.__name__)
    script = _script(bundle.path, form.graph, generation, settings)
    files = {
        PLAN: built.plan,
        VARIANT: form.graph,
        LOG: built.log.encode(),
        SCRIPT: script.encode(),
        RECORD: canonical_json(record),
    }
    if built.timing_cache:
        files[TIMING_CACHE] = built.timing_cache
    parent = plans_folder(bundle.path)
    parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".", dir=parent))
    folder = parent / place.key
    try:
        for name, data in files.items():
            (staged / name).write_bytes(data)
        (staged / SCRIPT).chmod(0o755)
        staged.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return StoredPlan(folder, record)


def _script(bundle: Path, graph: bytes, generation: Generation, settings: Settings) -> str:
    """A shell script; what differs between releases of trtexec is asked of trtexec."""
    flags = []
    if "INT8" in (wanted := wanted_flags(graph, generation, settings)):
        flags.append("--int8")
    if "FP16" in wanted:
        flags += ["--fp16", "--precisionConstraints=obey"]
    weak = " ".join(flags)
    return f"""#!/bin/sh
# Builds the engine for TensorRT {generation.name} with trtexec, on the device that will step it.
set -eu
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}
help=$("$trtexec" --help 2>&1 || true)
has() {{ printf '%s' "$help" | grep -q -e "$1"; }}
flags="--memPoolSize=workspace:{settings.workspace_bytes >> 20} --noTF32 {weak}"
if {"true" if generation.strongly_typed else "false"} && has --stronglyTyped; then
  flags="$flags --stronglyTyped"
fi
if has --skipInference; then flags="$flags --skipInference"; else flags="$flags --buildOnly"; fi
"$trtexec" --onnx={VARIANT} --saveEngine=trtexec.plan $flags > trtexec.log 2>&1 || {{
  tail -n 20 trtexec.log >&2
  exit 1
}}
stategate build-engine {shlex.quote(f"../../{bundle.name}")} --adopt-plan trtexec.plan
"""
