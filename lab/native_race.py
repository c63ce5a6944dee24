"""The native engine beside other runtimes and plain C, a row a shape, each out of one race."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from lab.peers.entries import SHAPES, Entry, Shape, entrants
from lab.peers.in_c import instruction_sets
from lab.peers.race import BARE, ERROR, SESSION, TOLERANCE, Race, race
from stategate.bench.measure.harness import last_core
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import MeasurementError

Table = dict[str, Any]
SESSIONS = (SESSION, "stategate, onnxruntime")
# How far answers may be from the golden ones where each runtime rounds weights by itself.
_ROUNDED = 0.02


def shape_rows(name: str, shape: Shape, raced: Race, peers: tuple[Entry, ...]) -> list[Table]:
    """A row for what is stepped from Python, and one for each loop in C.

    Returns:
        For each: our engine, the best peer and every other, in microseconds of the median step in
        the best burst; why the others have none; and each bar that is missed.
    """
    best = _best_us(raced)
    errors = {row.name: row.error for row in raced.rows if row.error is not None}
    rows = []
    for group in dict.fromkeys(entry.group for entry in peers):
        engine = next((e.name for e in peers if e.group == group and e.is_generated), BARE)
        others = [e.name for e in peers if e.group == group and not e.is_generated]
        # What is written by hand and stepped from Python is nobody's runtime, and no rival.
        rivals = [e.name for e in peers if e.name in others and (group or e.is_runtime)]
        us = {other: best[other] for other in others if other in best}
        fastest = min((r for r in rivals if r in us), key=us.__getitem__, default=None)
        row: Table = {
            "name": f"{name}, {group}" if group else name,
            "engine": engine,
            "ours_us": best.get(engine),
            "best_peer": fastest,
            "best_peer_us": us.get(fastest or ""),
            "peers": us,
            "not_measured": {o: errors[o] for o in (engine, *others) if o in errors},
        }
        if not group:
            row["session_us"] = {name: best[name] for name in SESSIONS if name in best}
            row["not_measured"] |= shape.cannot
        row["missed"] = _missed(shape, best.get(engine), {r: us[r] for r in rivals if r in us})
        rows.append(row)
    return rows


def _missed(shape: Shape, engine_us: float | None, peers_us: dict[str, float]) -> list[str]:
    if engine_us is None:
        return ["no native engine"]
    texts = []
    for peer, us in peers_us.items():
        bar = next((bar for start, bar in shape.bars.items() if peer.startswith(start)), None)
        if bar is not None and engine_us > bar * us:
            texts.append(f"{engine_us / us:.2f} of {peer}, at most {bar:.2f} was the aim")
    return texts


def _best_us(raced: Race) -> dict[str, float]:
    return {row.name: row.best_p50_us for row in raced.rows if row.best_p50_us is not None}


def headline(path: Path, raced: Race, peers: tuple[Entry, ...]) -> Table:
    """Ratios of AURA-Mem's race, None where one of the two did not run, and what they are of."""
    bundle, best = Bundle.open(path), _best_us(raced)
    native = bundle.manifest.native
    runtimes = [entry.name for entry in peers if entry.is_runtime and entry.name in best]
    fastest = min(runtimes, key=lambda name: best[name], default="")
    sessions = [name for name in SESSIONS if name in best]
    fastest_session = min(sessions, key=lambda name: best[name], default="")
    isa = instruction_sets()[0]

    def ratio(above: str, below: str) -> float | None:
        return best[above] / best[below] if above in best and below in best else None

    return {
        "speedup_vs_ort_run": ratio("onnxruntime, run", SESSION),
        "speedup_vs_best_peer": ratio(fastest, BARE),
        "best_peer_over_ours": ratio(fastest, fastest_session),
        "c_over_floor": ratio(f"C generated, write, {isa}", f"C by hand, write, {isa}"),
        "quiet_over_write": ratio(f"C generated, quiet, {isa}", f"C generated, write, {isa}"),
        "library_bytes": (bundle.path / str(native and native.library)).stat().st_size,
        "cold_start_ms": _cold_start_ms(bundle),
        "best_peer": fastest or None,
        "ours": fastest_session or None,
        "best_burst_p50_us": best,
        "not_measured": {row.name: row.error for row in raced.rows if row.error is not None},
        "native": msgspec.to_builtins(native),
        "race": msgspec.to_builtins(raced),
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


def race_shape(
    name: str, folder: Path, envs: Path | None, rounds: int | None
) -> tuple[Table, list[Table]]:
    """Race the bundle ``folder/name``: figures for the head of the file, and the shape's rows."""
    shape, path = SHAPES[name], folder / name
    why = path / ERROR
    if not (path / "manifest.json").exists():
        text = why.read_text().strip() if why.exists() else "its bundle was not made"
        return {}, [{"name": name, "ours_us": None, "missed": [f"no bundle: {text}"]}]
    source = folder / shape.source if shape.source else None
    if source is not None and not (source / "manifest.json").exists():
        source = None
    peers = entrants(shape, source)
    with progress(rounds or shape.rounds, name) as report:
        raced = race(
            path,
            envs,
            rounds or shape.rounds,
            last_core(),
            report,
            peers,
            lengths=(),
            burst=shape.burst,
            tolerance=_ROUNDED if shape.source else TOLERANCE,
        )
    head = headline(path, raced, peers) if name == "aura" else {}
    return head, shape_rows(name, shape, raced, peers)


def lines(rows: list[Table]) -> list[str]:
    """A table for the terminal."""
    texts = [f"{'us':<28} {'native':>9} {'best peer':>9} {'ratio':>6}"]
    for row in rows:
        native, peer = row["ours_us"], row.get("best_peer_us")
        figures = " ".join("        -" if us is None else f"{us:9.2f}" for us in (native, peer))
        both = native is not None and peer is not None
        ratio = f"{native / peer:6.2f} {row['best_peer']}" if both else ""
        texts.append(f"{row['name']:<28} {figures} {ratio}")
        texts += [f"    missed: {text}" for text in row["missed"]]
        texts += [f"    {peer}: {why}" for peer, why in row.get("not_measured", {}).items()]
    return texts


@click.command("bench-native")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", type=click.Choice(list(SHAPES)), multiple=True, help="This row; repeat.")
@click.option(
    "--envs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of environments that `make bench-native` makes; all in this one if left out.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Bursts of each; its own for each row.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for native.json; rows that are there and are not raced again stay.",
)
@click.option("--strict", is_flag=True, help="End with 1 if a peer could not be measured.")
def bench_native(
    folder: Path,
    only: tuple[str, ...],
    envs: Path | None,
    rounds: int | None,
    out: Path | None,
    strict: bool,
) -> None:
    """Time the native engine of the bundles in FOLDER beside other runtimes and plain C.

    Each row is a race of its own, burst beside burst on one core.

    \b
    Example:
      python -m lab bench-native build/race --envs build/peers --out build/bench
      python -m lab bench-native build/race --only lstm-64
    """
    file = (out or Path()) / "native.json"
    if out is not None:
        check_writable(file)
    result: Table = {"shapes": []}
    if out is not None and file.exists():
        result |= json.loads(file.read_text())
    failed = []
    for name in only or SHAPES:
        head, rows = race_shape(name, folder, envs, rounds)
        others = [r for r in result["shapes"] if r["name"].split(", ")[0] != name]
        result |= {**head, "shapes": [*others, *rows]}
        if out is not None:  # after every row: what is measured is kept if the next one is stopped
            write_whole(file, f"{json.dumps(result, indent=2)}\n".encode())
        click.echo("\n".join(lines(rows)))
        cannot = SHAPES[name].cannot
        failed += [p for row in rows for p in row.get("not_measured", {}) if p not in cannot]
    if strict and failed:
        raise MeasurementError("peers could not be measured", found=", ".join(sorted(set(failed))))
