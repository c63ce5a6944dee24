"""One command for a machine with an NVIDIA GPU: build, load, step, compare, time, write it down.

    python -m lab gpu-check build/aura
    python -m lab gpu-check                 # the zoo, where stategate[export] is installed

Each bundle gets an engine on this GPU and is stepped 10,000 times in closed loop beside ONNX
Runtime on the CPU, once for each way of running it: captured in CUDA graphs, and enqueued with the
addresses of the banks exchanged. The guard is tried with a state that holds NaN. The receipt goes
to ``docs/receipts/`` and is named for the GPU; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import msgspec
import numpy as np

import stategate
from stategate.common.console import progress
from stategate.contract import Bundle, Episode, canonical_json
from stategate.contract.dtypes import dtype_named
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import EngineError, SpecError, StateFault, StategateError
from stategate.contract.tensorrt_plan import RECORD, StoredPlan
from stategate.export.tensorrt.build import Settings, workspace_bytes
from stategate.export.tensorrt.plans import build_engine, keep_plan, lock_plans, staged_bundle
from stategate.runtime import Session
from stategate.runtime.check.gaps import live, side_by_side
from stategate.runtime.engines.cuda import Cuda
from stategate.runtime.engines.tensorrt_api import LIBRARIES, importable, load_tensorrt

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 200


@dataclass(frozen=True)
class Way:
    """What one way of running a bundle came to.

    Attributes:
        engine: Its name, as the session tells it.
        max_output_error: Against ONNX Runtime on the CPU, in units of each tensor's magnitude.
        max_state_error: The same of the states after the last step.
        gate_flips: Decisions that differed.
        same_ledger: Whether both counted the same writes.
        guard_fires: Whether NaN in the states is seen without fetching them; None where no state
            can hold NaN.
        p50_us: Median of a counted step.
        p99_us: The 99th percentile.
        cpu_p50_us: Median of a counted step in ONNX Runtime, here.
    """

    engine: str
    max_output_error: float
    max_state_error: float
    gate_flips: int
    same_ledger: bool
    guard_fires: bool | None
    p50_us: float
    p99_us: float
    cpu_p50_us: float

    def passed(self, tolerance: float) -> bool:
        """Whether it does what the CPU does."""
        errors = (self.max_output_error, self.max_state_error)
        close = all(error <= tolerance for error in errors)
        guarded = self.guard_fires is not False
        return close and self.gate_flips == 0 and self.same_ledger and guarded


def inputs_of(bundle: Bundle, steps: int) -> Episode:
    """The golden episode, repeated; noise for a bundle that has none."""
    golden = bundle.golden()
    if golden is not None:
        return Episode(golden.inputs).resized(steps)
    rng = np.random.default_rng(0)
    return Episode(
        {
            t.name: (
                rng.standard_normal((steps, *t.shape))
                if dtype_named(t.dtype).numpy.kind == "f"
                else rng.integers(0, 2, (steps, *t.shape))
            ).astype(t.dtype)
            for t in bundle.manifest.inputs
        }
    )


def compared(bundle: Bundle, episode: Episode) -> Way:
    """Step an engine beside ONNX Runtime, and time both."""
    with (
        Session.open(bundle.path, engine="tensorrt") as gpu,
        Session.open(bundle.path, engine="onnxruntime") as cpu,
        progress(episode.steps, f"{bundle.manifest.model.name}: {gpu.engine_name}") as report,
    ):

        def step(t: int, inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if t % 100 == 99:
                report(t + 1)
            return gpu.step(**inputs)

        run = side_by_side(bundle.manifest, live(gpu, episode, step), live(cpu, episode))
        same = gpu.ledger == cpu.ledger
        gpu_us, cpu_us = (timed(session, episode) for session in (gpu, cpu))
        return Way(
            engine=gpu.engine_name,
            max_output_error=run.outputs.worst(),
            max_state_error=run.states.worst(),
            gate_flips=run.flips,
            same_ledger=same,
            guard_fires=guard_fires(gpu, episode),
            p50_us=float(np.percentile(gpu_us, 50)),
            p99_us=float(np.percentile(gpu_us, 99)),
            cpu_p50_us=float(np.percentile(cpu_us, 50)),
        )


def timed(session: Session, episode: Episode) -> np.ndarray:
    """Microseconds of each step of an episode, after some that are not counted."""
    session.reset()
    feeds = list(episode)
    for feed in feeds[:WARM_UP]:
        session.step(**feed)
    spans_ns = np.empty(len(feeds))
    for t, feed in enumerate(feeds):
        start = perf_counter_ns()
        session.step(**feed)
        spans_ns[t] = perf_counter_ns() - start
    return spans_ns / 1000.0


def guard_fires(session: Session, episode: Episode) -> bool | None:
    """Whether the engine sees from the GPU's own sums that a memory full of NaN is not finite."""
    if all(dtype_named(state.dtype).numpy.kind != "f" for state in session.manifest.states):
        return None
    engine: Any = session._engine
    memory: Any = session._memory
    poisoned = {
        name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array.copy()
        for name, array in memory.live().items()
    }
    memory.begin(poisoned)
    parity = memory.parity
    with suppress(StateFault):  # some models' gates read the memory, and stop the step themselves
        session.step(**next(iter(episode)))
    fired = not all(engine.finite(group, parity) for group in session._buffers.groups)
    session.reset()
    return fired


def both_ways(bundle: Bundle, stored: StoredPlan, steps: int) -> dict[str, Way]:
    """A plan that is not kept yet, captured and enqueued; its record ends as it was."""
    linked = Bundle.open(staged_bundle(stored, bundle))
    episode, ways = inputs_of(bundle, steps), {}
    for name, captured in (("captured", True), ("ping-pong", False)):
        record = msgspec.structs.replace(stored.record, cuda_graph=captured)
        write_whole(stored.folder / RECORD, canonical_json(record))
        ways[name] = compared(linked, episode)
    write_whole(stored.folder / RECORD, canonical_json(stored.record))
    return ways


def zoo(folder: Path) -> list[Path]:
    """Bundles of every zoo model."""
    from stategate.models.zoo.catalogue import ZOO

    paths = []
    with progress(len(ZOO), "exporting the zoo") as report:
        for name in ZOO:
            stategate.make(name, folder / name, steps=200, split="fused", progress=lambda *_: None)
            paths.append(folder / name)
            report(len(paths))
    return paths


def bindings(library: str | None) -> Any:
    """TensorRT's bindings, or else those of TensorRT-RTX."""
    if library is not None:
        return load_tensorrt(library)
    present, missing = importable(LIBRARIES)
    if not present:
        raise EngineError(
            "neither TensorRT nor TensorRT-RTX can be imported",
            found="; ".join(str(problem).partition("\n")[0] for problem in missing),
            remedy="stategate doctor says what this machine needs",
        )
    return present[0]


def check(paths: list[Path], args: argparse.Namespace) -> int:
    """Do it all, and write the receipt."""
    bundles = {bundle.manifest.model.name: bundle for bundle in map(Bundle.open, paths)}
    if len(bundles) < len(paths):
        raise SpecError(
            "two bundles are of one model, and a receipt has one place for each",
            found=", ".join(map(str, paths)),
            remedy="check them one after the other, with an --out each",
        )
    trt, models, passed = bindings(args.library), {}, True
    fingerprint: dict[str, Any] = {}
    for model, bundle in bundles.items():
        name = f"building {model}"
        with lock_plans(bundle):
            with closing(Cuda()) as cuda, progress(100, name) as report:
                settings = Settings(workspace_bytes(cuda.memory()[1]))
                stored = build_engine(bundle, trt, cuda, settings, report=report)
                place = (cuda.gpu, cuda.integrated, cuda.memory()[1])
            ways = both_ways(bundle, stored, args.steps)
            if all(way.passed(args.tolerance) for way in ways.values()):
                keep_plan(stored, bundle)
            else:
                passed = False
        fingerprint = msgspec.to_builtins(stored.record.fingerprint)
        models[model] = {
            "onnx_sha256": fingerprint.pop("onnx_sha256"),
            "plan_bytes": stored.record.plan_bytes,
            **{name: asdict(way) for name, way in ways.items()},
        }
    gpu, integrated, memory = place
    receipt = {
        "passed": passed,
        "tolerance": args.tolerance,
        "steps": args.steps,
        "place": fingerprint | {"integrated": integrated, "memory_bytes": memory},
        "onnxruntime": version("onnxruntime"),
        "numpy": np.__version__,
        "models": models,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu} {trt.__name__} {trt.__version__}".lower()).strip("-")
    out = args.out / f"{slug}.json"
    write_whole(out, json.dumps(receipt, indent=2).encode() + b"\n")
    for name, record in models.items():
        for way in ("captured", "ping-pong"):
            figures = record[way]
            print(
                f"{name:<16} {way:<10} error {figures['max_output_error']:.2g}, "
                f"{figures['gate_flips']} flips, p50 {figures['p50_us']:.1f} us, "
                f"p99 {figures['p99_us']:.1f} us, CPU {figures['cpu_p50_us']:.1f} us"
            )
    print(f"{'passed' if passed else 'FAILED'}: {os.path.relpath(out)}")
    return 0 if passed else 1


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line; an error is a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles; the zoo if left out")
    parser.add_argument("--steps", type=int, default=10_000, help="steps a way (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--library", choices=LIBRARIES, help="TensorRT's, if left out and there")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "receipts", help="folder")
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error("--steps: at least 1")
    if not 0 <= args.tolerance < float("inf"):
        parser.error("--tolerance: a number, and not negative")
    try:
        check_writable(args.out / "receipt.json")
        if args.bundles:
            return check(args.bundles, args)
        with tempfile.TemporaryDirectory(prefix="stategate-") as scratch:
            return check(zoo(Path(scratch)), args)
    except StategateError as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        return problem.exit_code


@click.command(
    "gpu-check", add_help_option=False, context_settings={"ignore_unknown_options": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gpu_check(arguments: tuple[str, ...]) -> None:
    """Check TensorRT on this machine's GPU; its own parser reads ARGUMENTS."""
    sys.exit(main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
