"""From a bundle to a plan beside it, on the device that will step it.

A plan is made in a folder of its own that no session looks into, is stepped there through a link to
the bundle, and is moved to its place whole. Until then an older plan stays and is what sessions
load, whatever ends the build.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stategate.contract import Bundle, FileRef, canonical_json, sha256
from stategate.contract.durable import (
    make_folder,
    move_into_place,
    sync_folder,
    try_lock,
    write_synced,
    write_whole,
)
from stategate.contract.errors import BuildError, ParityError
from stategate.contract.tensorrt_plan import (
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
from stategate.export.seal.verify import TOLERANCE
from stategate.export.tensorrt.build import Built, Settings, build_plan
from stategate.export.tensorrt.generations import generation_of
from stategate.export.tensorrt.script import SCRIPT, script_of, variant_of
from stategate.export.tensorrt.variant import Variant
from stategate.runtime.check.golden import Replay, replay
from stategate.runtime.engines.cuda import Cuda
from stategate.runtime.engines.tensorrt_api import (
    local_fingerprint,
    make_log,
    make_with_log,
    refusal,
)
from stategate.runtime.trust.code import accept_for_this_process, accept_own

# What the last build said that came to nothing.
FAILED_LOG = "failed-build.log"


@contextmanager
def lock_plans(bundle: Bundle) -> Iterator[None]:
    """Keep other builders from a bundle's plans; what is not kept in the end is cleared away.

    So is what a killed builder left. The bundle's folder itself is locked, which writes nothing and
    ends with the process.
    """
    handle = os.open(bundle.path, os.O_RDONLY)
    try:
        if try_lock(handle) == "in use":  # where there are no locks, nobody can be kept away
            raise BuildError(
                "another process builds an engine of this bundle",
                found=bundle.path,
                remedy="wait until it is done",
            )
        folder = plans_folder(bundle.path)
        (folder / FAILED_LOG).unlink(missing_ok=True)
        _clear(folder)
        try:
            yield
        finally:
            for log in folder.glob(f".*/{LOG}"):
                write_whole(folder / FAILED_LOG, log.read_bytes())
            _clear(folder)
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
    """Build a plan where no session looks for it yet; see `check_plan` and `keep_plan`."""
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
    with _staged(bundle, trt, cuda) as stage:
        built = build_plan(trt, form.graph, settings, report, stage.log)
        return _store(stage, form, built, settings, cuda_graph=cuda_graph)


def adopt_plan(
    bundle: Bundle,
    plan: Path,
    trt: Any,
    cuda: Cuda,
    settings: Settings,
    *,
    cuda_graph: bool = True,
) -> StoredPlan:
    """Take a plan that trtexec built here, to where no session looks for it yet."""
    form = variant_of(bundle, generation_of(trt.__version__, trt.__name__))
    if bundle.manifest.golden is None:
        raise BuildError(
            "nothing shows that the plan is one of this bundle",
            found="a bundle without a golden episode to replay",
            remedy="build it here from the bundle's own graph: "
            "stategate device build-engine BUNDLE; or "
            "seal the bundle, which records one: stategate export",
        )
    try:
        raw = plan.read_bytes()
    except OSError as problem:
        raise BuildError("the plan cannot be read", found=problem) from problem
    with _staged(bundle, trt, cuda) as stage:
        runtime: Any = make_with_log(trt.Runtime, stage.log)
        if runtime.deserialize_cuda_engine(raw) is None:
            raise refusal(
                f"TensorRT {trt.__version__} does not load {plan.name}",
                stage.log,
                expected="a plan that was built here, by this version",
                remedy=f"run {SCRIPT} again on this device",
                kind=BuildError,
            )
        built = Built(raw, ("trtexec",), b"")
        return _store(stage, form, built, settings, cuda_graph=cuda_graph, built_by="trtexec")


def staged_bundle(stored: StoredPlan, bundle: Bundle) -> Path:
    """A link to the bundle, beside which a session finds a plan that is not kept yet."""
    return stored.folder.parent.with_name(bundle.path.name)


def check_plan(stored: StoredPlan, bundle: Bundle, tolerance: float = TOLERANCE) -> Replay | None:
    """Replay the golden episode, where there is one, with a plan that is not kept yet."""
    receipt = bundle.manifest.verification
    allowed = max(tolerance, (receipt.tolerance or 0.0) if receipt else 0.0)
    result = replay(staged_bundle(stored, bundle), allowed, "tensorrt")
    if result is not None and not result.passed:
        raise ParityError(
            "the engine does not repeat the golden episode",
            found=result.summary,
            expected=f"at most {allowed:g} and no flip",
            remedy="step this bundle with onnxruntime; the engine is not kept",
        )
    return result


def keep_plan(stored: StoredPlan, bundle: Bundle) -> StoredPlan:
    """Move a plan to where sessions look for it, in the place of an older one."""
    parent = plans_folder(bundle.path)
    folder = parent / stored.folder.name
    move_into_place(stored.folder, folder)
    shutil.rmtree(staged_bundle(stored, bundle).parent)
    accept_own(stored.record.plan.sha256, bundle.manifest.model.name)
    return StoredPlan(folder, stored.record)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where a plan lies that is not kept yet, and what it was made with."""

    folder: Path  # nothing else is in it, and no session looks into it
    bundle: Bundle  # what the plan is of
    trt: Any  # TensorRT's bindings
    cuda: Cuda  # the GPU
    log: Any  # what TensorRT says


@contextmanager
def _staged(bundle: Bundle, trt: Any, cuda: Cuda) -> Iterator[_Stage]:
    """A new stage, in which the log is left in every case."""
    parent = plans_folder(bundle.path)
    make_folder(parent)
    folder = Path(tempfile.mkdtemp(prefix=".", dir=parent))
    (folder / bundle.path.name).symlink_to(bundle.path)
    log = make_log(trt)
    try:
        yield _Stage(folder, bundle, trt, cuda, log)
    finally:
        (folder / LOG).write_text(log.text())


def _clear(folder: Path) -> None:
    """Remove what was staged and not kept."""
    for stage in folder.glob(".*"):
        shutil.rmtree(stage, ignore_errors=True)
    with suppress(OSError):  # where anything else lies in it
        folder.rmdir()


def _earlier_times(bundle: Bundle, trt: Any, cuda: Cuda) -> bytes | None:
    place = local_fingerprint(trt, cuda, bundle.manifest.step_graph.file.sha256)
    for stored in stored_plans(bundle.path):
        times = stored.record.timing_cache_sha256
        if times is not None and not stored.hindrances(place):
            return stored.read(FileRef(TIMING_CACHE, times))
    return None


def _store(
    stage: _Stage,
    form: Variant,
    built: Built,
    settings: Settings,
    *,
    cuda_graph: bool,
    built_by: Literal["python", "trtexec"] = "python",
) -> StoredPlan:
    bundle, trt = stage.bundle, stage.trt
    graph = bundle.manifest.step_graph.file.sha256
    record = PlanRecord(
        fingerprint=local_fingerprint(trt, stage.cuda, graph, built.flags),
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
    script = script_of(bundle.path, form.graph, generation, settings)
    files = {
        PLAN: built.plan,
        VARIANT: form.graph,
        LOG: stage.log.text().encode(),
        SCRIPT: script.encode(),
        RECORD: canonical_json(record),
    }
    if built.timing_cache:
        files[TIMING_CACHE] = built.timing_cache
    accept_for_this_process(record.plan.sha256)
    folder = plans_folder(stage.folder / bundle.path.name) / record.fingerprint.key
    for name, data in files.items():
        write_synced(folder / name, data)
    (folder / SCRIPT).chmod(0o755)
    sync_folder(folder)
    return StoredPlan(folder, record)
