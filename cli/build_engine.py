"""``stategate device build-engine``: a TensorRT plan of a bundle, built on this device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stategate.cli.options import COUNT, FILE, PRICE, bundle_verb, flag, option
from stategate.cli.show import Line, show
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.durable import check_writable
from stategate.contract.errors import StategateError
from stategate.contract.tensorrt_plan import StoredPlan, plans_folder
from stategate.export.seal.verify import TOLERANCE
from stategate.runtime.engines.tensorrt_api import LIBRARIES, load_tensorrt
from stategate.targets import load

if TYPE_CHECKING:
    from stategate.runtime.check.golden import Replay


@bundle_verb("build-engine")
@option(
    "--library",
    type=click.Choice(LIBRARIES),
    default=LIBRARIES[0],
    help="Whose plan: TensorRT's, or TensorRT-RTX's for a desktop GPU.",
)
@option(
    "--workspace-mib",
    type=COUNT,
    help="Scratch memory of the builder; an eighth of the target's memory, at most 1024, if left "
    "out.",
)
@flag("--strip-weights", "Leave weights out of the plan; 10.3 or newer.")
@flag("--no-cuda-graph", "Enqueue each step instead of capturing it.")
@flag("--new-timing-cache", "Time kernels anew; the plan may become another.")
@option(
    "--tolerance",
    type=PRICE,
    default=TOLERANCE,
    help="Largest error in the golden episode, relative to each tensor's size.",
)
@option(
    "--script",
    metavar="VERSION",
    help="Only write the graph for this TensorRT and a script that has trtexec build it.",
)
@option(
    "--adopt-plan",
    "adopt_plan_path",
    type=FILE,
    help="Take a plan that trtexec built here instead of building one.",
)
def build_engine(
    bundle: Path,
    library: str,
    workspace_mib: int | None,
    strip_weights: bool,
    no_cuda_graph: bool,
    new_timing_cache: bool,
    tolerance: float,
    script: str | None,
    adopt_plan_path: Path | None,
) -> None:
    """Build a TensorRT engine of BUNDLE for this device, and replay the golden episode with it.

    The plan goes into BUNDLE.engines/ beside the bundle, which stays as it was sealed. It is loaded
    only where GPU, TensorRT, driver and graph are the same. One that cannot be built or behaves
    differently leaves its log; an older one then stays.

    \b
    Examples:
      stategate device build-engine build/aura
      stategate device build-engine build/aura --script 8.5
    """
    built = strip_weights or new_timing_cache
    if adopt_plan_path is not None and (built or script is not None):
        raise click.UsageError("--adopt-plan takes a plan as it is: nothing is built")
    if script is not None and (built or no_cuda_graph):
        raise click.UsageError("--script writes a script: it says nothing of how a plan is stepped")

    from stategate.export.tensorrt.build import Settings, workspace_bytes
    from stategate.export.tensorrt.plans import (
        FAILED_LOG,
        adopt_plan,
        build_engine,
        check_plan,
        keep_plan,
        lock_plans,
    )
    from stategate.export.tensorrt.script import write_script
    from stategate.runtime.engines.cuda import Cuda

    opened = Bundle.open(bundle)
    check_writable(plans_folder(opened.path) / "step.plan")
    target = opened.manifest.target
    memory = load(target.name).memory_bytes.value if target is not None else None
    workspace = workspace_mib << 20 if workspace_mib else workspace_bytes(memory)
    settings = Settings(workspace, strip_weights=strip_weights)
    if script is not None:
        click.echo(write_script(opened, script, settings))
        return
    trt = load_tensorrt(library)
    try:
        with lock_plans(opened):
            with closing(Cuda()) as cuda:
                if adopt_plan_path is not None:
                    stored = adopt_plan(
                        opened, adopt_plan_path, trt, cuda, settings, cuda_graph=not no_cuda_graph
                    )
                else:
                    with progress(100, "building") as report:
                        stored = build_engine(
                            opened,
                            trt,
                            cuda,
                            settings,
                            cuda_graph=not no_cuda_graph,
                            new_timing_cache=new_timing_cache,
                            report=report,
                        )
            result = check_plan(stored, opened, tolerance)
            stored = keep_plan(stored, opened)
    except StategateError:
        log = plans_folder(opened.path) / FAILED_LOG
        if log.exists():
            click.echo(f"what TensorRT said: {log}", err=True)
        raise
    show(stored.record, _lines(stored, result))


def _lines(stored: StoredPlan, result: Replay | None) -> Iterator[Line]:
    record, place = stored.record, stored.record.fingerprint
    yield "engine", stored.folder
    yield (
        "built by",
        f"{place.library} {place.version} for {place.gpu}, compute capability "
        f"{place.compute_capability}",
    )
    yield "plan", f"{record.plan_bytes:,} bytes, sha256 {record.plan.sha256[:12]}"
    if result is None:
        yield "golden", "not checked: the bundle carries no golden episode"
    else:
        yield (
            "golden",
            f"{result.steps} steps: output error {result.max_output_error:.2g}, state "
            f"error {result.max_state_error:.2g}, {result.gate_flips} gate flips",
        )
