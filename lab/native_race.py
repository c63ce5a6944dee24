"""What the native engine gains, as ratios out of one race: its rows, its peers', and those in C."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from lab.peers.entries import Entry, peers_of
from lab.peers.race import BARE, BURST, SESSION, TOLERANCE, Race, lines, race
from stategate.bench.measure.harness import last_core
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.runtime.check.build_native import build_native

_RATIOS = (
    "speedup_vs_ort_run",
    "speedup_vs_best_peer",
    "best_peer_over_ours",
    "c_over_floor",
    "quiet_over_write",
)


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
    result = race(
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
    best = {row.name: row.best_p50_us for row in result.rows if row.best_p50_us is not None}
    runtimes = [entry.name for entry in peers if entry.is_runtime and entry.name in best]
    fastest = min(runtimes, key=lambda name: best[name], default="")
    sessions = [name for name in (SESSION, "stategate, onnxruntime") if name in best]
    fastest_session = min(sessions, key=lambda name: best[name], default="")

    def ratio(above: str, below: str) -> float | None:
        return best[above] / best[below] if above in best and below in best else None

    return result, {
        "speedup_vs_ort_run": ratio("onnxruntime, run", SESSION),
        "speedup_vs_best_peer": ratio(fastest, BARE),
        "best_peer_over_ours": ratio(fastest, fastest_session),
        "c_over_floor": ratio("C generated, write", "C by hand, write"),
        "quiet_over_write": ratio("C generated, quiet", "C generated, write"),
        "library_bytes": (bundle.path / str(native and native.library)).stat().st_size,
        "cold_start_ms": _cold_start_ms(bundle),
        "best_peer": fastest or None,
        "ours": fastest_session or None,
        "best_burst_p50_us": best,
        "not_measured": {row.name: row.error for row in result.rows if row.error is not None},
        "native": msgspec.to_builtins(native),
        "race": msgspec.to_builtins(result),
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
    starts_ms = [
        float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return min(starts_ms)


def ready(path: Path) -> Path:
    """The bundle, compiled on this machine if it only has source.

    Raises:
        BuildError: There is no compiler.
    """
    native = Bundle.open(path).manifest.native
    return path if native is not None and native.library else build_native(path).path


@click.command("bench-native")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--envs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of environments that `make bench-native` makes; all in this one if left out.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=16, show_default=True, help="Bursts of each."
)
@click.option(
    "--burst",
    type=click.IntRange(min=1),
    default=BURST,
    show_default=True,
    help="Steps of a burst.",
)
@click.option(
    "--float",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The same model in float32, for runtimes that make their own int8 of it.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=TOLERANCE,
    show_default=True,
    help="How far answers may be from the golden ones; wider for who rounds weights by himself.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for native.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_native(
    bundle: Path,
    envs: Path | None,
    rounds: int,
    burst: int,
    source: Path | None,
    tolerance: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time the native engine of BUNDLE beside other runtimes and plain C, by turns on one core.

    Who runs beside it depends on the model: AURA-Mem has rivals written by hand for it, any other
    is given to the runtimes that take its graph.

    \b
    Example:
      python -m lab bench-native build/aura --envs build/peers --out build/bench
      python -m lab bench-native build/small --float build/large --burst 100 --tolerance 0.02
    """
    if out is not None:
        check_writable(out / "native.json")
    peers = peers_of(Bundle.open(ready(bundle)), source and Bundle.open(source).path)
    with progress(rounds, "measuring") as report:
        table, result = measure_native(bundle, envs, rounds, report, peers, burst, tolerance)
    text = json.dumps(result, indent=2)
    if out is not None:
        write_whole(out / "native.json", f"{text}\n".encode())
    if as_json:
        click.echo(text)
        return
    click.echo("\n".join(lines(table)))
    for key in _RATIOS:
        text = "not measured" if result[key] is None else f"{result[key]:.2f}"
        click.echo(f"{key:<22} {text}")
    click.echo(f"library_bytes          {result['library_bytes']}")
    click.echo(f"cold_start_ms          {result['cold_start_ms']:.2f}")
