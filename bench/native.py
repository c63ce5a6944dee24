"""The native engine beside its peers: one run, one core, everybody in short bursts by turns."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime

from stategate.bench.overhead import bound_calls, plain_run
from stategate.contract import Bundle
from stategate.contract.compiler import compile_library
from stategate.contract.errors import EngineError
from stategate.runtime import Session
from stategate.runtime.buffers import Array
from stategate.runtime.build_native import build_native
from stategate.runtime.engine_native import NativeEngine, pointers

PEERS = ("mnn", "openvino", "litert")
ROUNDS = 60
BURST = 200
_HERE = Path(__file__).parent / "peers"

Burst = Callable[[int], list[float]]


def measure_native(
    path: Path,
    *,
    peers_python: Path | None = None,
    rounds: int = ROUNDS,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures of the native engine and of what it is compared with.

    Args:
        path: A bundle with a native library for this machine.
        peers_python: Interpreter of the environment that the peers are installed in.
        rounds: Bursts of each subject; a subject's figure is the median of its best burst.
        report: Called with the number of rounds done.

    Returns:
        Ratios, microseconds by subject, sizes, and where they were measured; JSON throughout.

    Raises:
        EngineError: The bundle has no library for this machine.
    """
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    bundle = Bundle.open(path)
    failed: dict[str, str] = {}
    with ExitStack() as opened:
        subjects, names = _ours(bundle, opened), {}
        for kind in PEERS if peers_python is not None else ():
            try:
                names[kind], subjects[kind] = _peer(kind, bundle, Path(str(peers_python)), opened)
            except (OSError, ValueError) as problem:
                failed[kind] = str(problem)[-600:]
        subjects |= _in_c(bundle, opened)
        best = {name: float("inf") for name in subjects}
        for i in range(rounds):
            for name, burst in subjects.items():
                best[name] = min(best[name], float(np.median(burst(BURST))) / 1000.0)
            report(i + 1)
    native = bundle.manifest.native
    library = bundle.path / str(native.library if native else "")
    peers = {n: us for n, us in best.items() if n in PEERS or n.startswith("onnxruntime bound")}
    floor = best.get("floor, write in C")
    return {
        "speedup_vs_ort_run": best["onnxruntime run"] / best["session"],
        "speedup_vs_best_peer": min(peers.values()) / best["engine"],
        "c_over_floor": best["write in C"] / floor if floor else None,
        "quiet_over_write": best["quiet in C"] / best["write in C"],
        "library_bytes": library.stat().st_size,
        "cold_start_ms": _cold_start_ms(bundle),
        "best_peer": min(peers, key=lambda name: peers[name]),
        "best_burst_p50_us": best,
        "peers": names,
        "peers_failed": failed,
        "rounds": rounds,
        "burst": BURST,
        "model": bundle.manifest.model.name,
        "native": json.loads(json.dumps(native, default=_plain)),
        "machine": _machine(core),
    }


def _ours(bundle: Bundle, opened: ExitStack) -> dict[str, Burst]:
    golden = bundle.golden()
    feeds = [dict(feed) for feed in golden] if golden is not None else []
    session = opened.enter_context(Session.open(bundle.path, engine="native"))
    other = opened.enter_context(Session.open(bundle.path, engine="onnxruntime"))
    engine = session._open_engine()
    if not isinstance(engine, NativeEngine):
        raise EngineError("this measures the native engine", found=engine.name)
    buffers = {slot.name: slot.array for slot in session._buffers.inputs}
    parity = [0]

    def bare(feed: dict[str, Array]) -> None:
        for name, buffer in buffers.items():
            buffer[...] = feed[name]
        engine.run(parity[0])
        parity[0] ^= 1

    public, private = bound_calls(bundle)
    ways: dict[str, Callable[[dict[str, Array]], object]] = {
        "session": lambda feed: session.step(**feed),
        "session on onnxruntime": lambda feed: other.step(**feed),
        "engine": bare,
        "onnxruntime run": plain_run(bundle),
        "onnxruntime bound": public,
        "onnxruntime bound, private call": private,
    }
    return {name: _timed(step, feeds) for name, step in ways.items()}


def _timed(step: Callable[[dict[str, Array]], object], feeds: list[dict[str, Array]]) -> Burst:
    def burst(count: int) -> list[float]:
        times = []
        for i in range(count):
            feed = feeds[i % len(feeds)]
            start = perf_counter_ns()
            step(feed)
            times.append(float(perf_counter_ns() - start))
        return times

    return burst


def _in_c(bundle: Bundle, opened: ExitStack) -> dict[str, Burst]:
    """The generated step, with its gate open and shut, in a loop of C; and the floor beside it."""
    scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="stategate-")))
    sources = {"loop.c": (_HERE / "loop.c").read_bytes()}
    (scratch / "loop.so").write_bytes(compile_library(sources).library)
    loop = ctypes.CDLL(str(scratch / "loop.so")).nanoseconds
    loop.restype = ctypes.c_double
    native = bundle.manifest.native
    library = ctypes.CDLL(str(bundle.path / str(native.library if native else "")))
    steps = {"write in C": (library.stategate_compute, -1e30)}
    steps["quiet in C"] = (library.stategate_compute, 1e30)
    bound = {name: _bound(bundle, *step) for name, step in steps.items()}
    floor = _HERE / f"{bundle.manifest.model.name}.c"
    if floor.is_file():
        listed = {Path(f.path).name: f for f in bundle.manifest.files}
        parts = {n: bundle.read(listed[n]) for n in ("weights.bin", "stategate_math.h")}
        built = compile_library({"floor.c": floor.read_bytes(), **parts}).library
        (scratch / "floor.so").write_bytes(built)
        made = ctypes.CDLL(str(scratch / "floor.so"))
        if made.floor_weight_bytes() > len(parts["weights.bin"]) + 63:
            raise EngineError("the floor's weights are not those of this bundle")
        for name, threshold in (("floor, write in C", -1e30), ("floor, quiet in C", 1e30)):
            bound[name] = _bound(bundle, made.floor_compute, threshold, _rate(bound["write in C"]))
        _same(bound["write in C"], bound["floor, write in C"])
    return {name: _looped(loop, *tables) for name, tables in bound.items()}


_Bound = tuple[Any, Any, Any, dict[str, Array]]


def _rate(tables: _Bound) -> Array:
    """AURA-Mem's c2, a scalar of its graph: from zero states, b' is c2 of what S' is k times."""
    step, takes, gives, kept = tables
    step(takes[1][0], gives[1][0])
    change = np.sqrt((kept["S_next"] ** 2).sum(axis=1)).reshape(-1)
    return np.array([np.linalg.norm(kept["b_next"]) / np.linalg.norm(change)], np.float32)


def _same(ours: _Bound, theirs: _Bound) -> None:
    """Hold two steps against each other, from zero states and a step further.

    Raises:
        EngineError: They do not compute the same.
    """
    for turn in (0, 1):
        for step, takes, gives, _ in (ours, theirs):
            step(takes[1][turn], gives[1][turn])
    for name, array in ours[3].items():
        gap = float(np.abs(array - theirs[3][name]).max())
        if not gap <= 1e-4 * max(1.0, float(np.abs(array).max())):
            raise EngineError("the floor computes another model", found=f"{name} off by {gap:.3g}")


def _bound(bundle: Bundle, step: Any, threshold: float, *further: Array) -> _Bound:
    """A step with two sets of tensors that take turns, as two banks do."""
    spec = bundle.manifest.step
    thresholds = {gate.threshold_input for gate in spec.gates}
    rng = np.random.default_rng(0)
    kept: dict[str, Array] = {}
    for name, tensor in {**spec.graph_inputs(), **spec.graph_outputs()}.items():
        kept[name] = np.zeros(tensor.shape, tensor.dtype)
        if name in thresholds:
            kept[name].fill(threshold)
        elif name in {t.name for t in spec.inputs}:
            kept[name][...] = rng.standard_normal(tensor.shape)
    swapped = {s.name: s.next_name for s in spec.states}
    swapped |= {after: before for before, after in swapped.items()}
    tables = []
    for names in (spec.graph_inputs(), spec.graph_outputs()):
        turns = [[kept[n] for n in names], [kept[swapped.get(n, n)] for n in names]]
        rows = [pointers([*arrays, *further]) for arrays in turns]
        tables.append((rows, (ctypes.c_void_p * 2)(*map(ctypes.addressof, rows))))
    kept |= {f"further {i}": array for i, array in enumerate(further)}
    step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    return step, tables[0], tables[1], kept


def _looped(loop: Any, step: Any, takes: Any, gives: Any, kept: dict[str, Array]) -> Burst:
    def burst(count: int) -> list[float]:
        assert kept  # the tables point into these
        return [float(loop(step, takes[1], gives[1], count))]

    return burst


def _peer(kind: str, bundle: Bundle, python: Path, opened: ExitStack) -> tuple[str, Burst]:
    """A peer in its own process; raises ValueError with its last words if it cannot start."""
    spec = bundle.manifest.step
    values = {constant.name: constant.value for constant in spec.fixed_inputs}
    described = {
        "inputs": {n: (t.shape, t.dtype, values.get(n, 0)) for n, t in spec.graph_inputs().items()},
        "fed": [t.name for t in spec.inputs],
        "read": {t.name: t.shape for t in spec.outputs},
    }
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="stategate-")))
    (folder / "spec.json").write_text(json.dumps(described))
    graph = bundle.path / bundle.manifest.step_graph.file.path
    words = [str(python), str(_HERE / "worker.py"), kind, str(graph), str(folder / "spec.json")]
    said = opened.enter_context((folder / "said.txt").open("w+"))
    worker = opened.enter_context(
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )
    )
    opened.callback(worker.kill)
    assert worker.stdin is not None and worker.stdout is not None
    stdin, stdout = worker.stdin, worker.stdout
    first = stdout.readline()
    if not first:
        worker.wait()
        said.seek(0)
        raise ValueError(said.read().strip())

    def burst(count: int) -> list[float]:
        stdin.write(f"{count}\n")
        stdin.flush()
        return [float(ns) for ns in json.loads(stdout.readline() or "[]")]

    told = json.loads(first)
    _check_answer(kind, bundle, told["fed"], told["answer"])
    return str(told["name"]), burst


def _check_answer(kind: str, bundle: Bundle, fed: Any, answer: Any) -> None:
    """Hold a peer's first step, from zero states, against ours."""
    with Session.open(bundle.path, engine="native") as session:
        feed = {
            t.name: np.array(fed[t.name], t.dtype).reshape(t.shape) for t in session.manifest.inputs
        }
        for name, array in session.step(**feed).items():
            gap = np.abs(np.array(answer[name]) - array.reshape(-1)).max()
            if not gap <= 1e-3 * max(1.0, float(np.abs(array).max())):
                raise ValueError(f"{kind} computes another {name}: off by {gap:.3g}")


def _cold_start_ms(bundle: Bundle) -> float:
    """Mapping the library, binding it and the first step, in a process that has numpy already."""
    code = (
        "import sys, time\n"
        "from stategate.contract import Bundle\n"
        "from stategate.runtime.engine_native import NativeEngine\n"
        "from stategate.runtime.plan import allocate\n"
        "bundle = Bundle.open(sys.argv[1]); buffers = allocate(bundle)\n"
        "start = time.perf_counter_ns()\n"
        "NativeEngine(bundle, bundle.manifest.native, buffers).run(0)\n"
        "print((time.perf_counter_ns() - start) / 1e6)\n"
    )
    words = [sys.executable, "-c", code, str(bundle.path)]
    seen = [
        float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return float(np.median(seen))


def _machine(core: int) -> Mapping[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": cpu,
        "core": core,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _plain(record: Any) -> Any:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def ready(path: Path) -> Path:
    """The bundle, compiled on this machine if it only has source.

    Raises:
        CompilerError: There is no compiler.
    """
    native = Bundle.open(path).manifest.native
    return path if native is not None and native.library else build_native(path).path
