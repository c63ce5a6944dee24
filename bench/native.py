"""What the native engine gains, as ratios out of one race: its rows, its peers', and those in C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from stategate.bench.measure.harness import last_core
from stategate.bench.peers.entries import Entry
from stategate.bench.peers.race import ALONE, BURST, SESSION, TOLERANCE, Race, race
from stategate.contract import Bundle
from stategate.runtime.check.build_native import build_native


def measure_native(
    path: Path,
    envs: Path | None,
    rounds: int,
    report: Callable[[int], None],
    peers: tuple[Entry, ...],
    burst: int = BURST,
    tolerance: float = TOLERANCE,
) -> tuple[Race, dict[str, Any]]:
    """Race the native engine with everybody, and put its figures in relation.

    Args:
        path: A bundle with a native library for this machine.
        envs: Folder of the peers' environments; None runs everybody in this one.
        rounds: Bursts of each.
        report: Called with the number of rounds done.
        peers: Who runs beside our engines.
        burst: Steps of a burst.
        tolerance: Of everybody's answers; see `race`.

    Returns:
        The race, and ``native.json``: JSON throughout, a ratio being None where one of its two
        did not run.
    """
    found = race(
        path,
        envs,
        rounds,
        last_core(),
        report,
        peers,
        lengths=(),
        burst=burst,
        tolerance=tolerance,
    )
    bundle = Bundle.open(path)
    native = bundle.manifest.native
    best = {row.name: row.best_p50_us for row in found.rows if row.best_p50_us is not None}
    runtimes = [entry.name for entry in peers if entry.is_runtime and entry.name in best]
    fastest = min(runtimes, key=lambda name: best[name], default="")
    sessions = [name for name in (SESSION, "stategate, onnxruntime") if name in best]
    ours = min(sessions, key=lambda name: best[name], default="")

    def ratio(over: str, under: str) -> float | None:
        return best[over] / best[under] if over in best and under in best else None

    return found, {
        "speedup_vs_ort_run": ratio("onnxruntime, run", SESSION),
        "speedup_vs_best_peer": ratio(fastest, ALONE),
        "best_peer_over_ours": ratio(fastest, ours),
        "c_over_floor": ratio("C generated, write", "C by hand, write"),
        "quiet_over_write": ratio("C generated, quiet", "C generated, write"),
        "library_bytes": (bundle.path / str(native and native.library)).stat().st_size,
        "cold_start_ms": _cold_start_ms(bundle),
        "best_peer": fastest or None,
        "ours": ours or None,
        "best_burst_p50_us": best,
        "not_measured": {row.name: row.error for row in found.rows if row.error is not None},
        "native": msgspec.to_builtins(native),
        "race": msgspec.to_builtins(found),
    }


def _cold_start_ms(bundle: Bundle) -> float:
    """Mapping the library, binding it and the first step, in a process that has numpy already.

    The fastest of five, as the fastest burst stands for the steps.
    """
    code = (
        "import sys, time\n"
        "from stategate.contract import Bundle\n"
        "from stategate.runtime.engines.native import NativeEngine\n"
        "from stategate.runtime.engines.opening import allocate\n"
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
    return min(seen)


def ready(path: Path) -> Path:
    """The bundle, compiled on this machine if it only has source.

    Raises:
        CompilerError: There is no compiler.
    """
    native = Bundle.open(path).manifest.native
    return path if native is not None and native.library else build_native(path).path
