"""Our engines and their peers, burst beside burst, and a cache that grows.

A peer counts only if its answers are those of the golden episode; one that cannot be installed,
cannot open the model or answers otherwise is listed with what it said.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import click
import msgspec
import numpy as np

from lab.peers.entries import PEERS, Entry
from lab.peers.growing import LENGTHS, measure
from stategate.bench.measure.driver import OPEN_SESSION, Driver
from stategate.bench.measure.harness import contenders, last_core
from stategate.bench.measure.sensors import facts, moment
from stategate.bench.measure.subject import engines
from stategate.bench.record import Moment, Times, to_json
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import MeasurementError
from stategate.contract.specs import Record

_ROOT = Path(__file__).parents[2]
SCHEMA_VERSION = 1
TOLERANCE = 1e-4
ERROR, _PYTHON = "error.txt", "venv/bin/python"
BURST = 2000
# Longer than a compiler or converter takes at open; who says nothing for so long never will.
SILENCE_S = 900.0
SESSION, BARE = "stategate, native", "stategate, native, no session"


class Row(Record, frozen=True):
    """One entry of the table; every figure is None where it did not run, and ``error`` says why.

    Attributes:
        name: Which way.
        engine: What it called itself.
        best_p50_us: Median of its fastest burst: what neighbours disturb least.
        median_p50_us: Median of the medians of its bursts.
        best_p99_us: 99th percentile of the fastest burst.
        over_ours: ``best_p50_us`` over that of a session on our fastest engine.
        resident_bytes: Of its process, beyond what that took before opening the model.
        first_answer_s: From the start of its process to its first answer.
        max_output_error: Against the golden outputs, in units of the largest.
        error: Why it did not run.
    """

    name: str
    engine: str | None = None
    best_p50_us: float | None = None
    median_p50_us: float | None = None
    best_p99_us: float | None = None
    over_ours: float | None = None
    resident_bytes: int | None = None
    first_answer_s: float | None = None
    max_output_error: float | None = None
    error: str | None = None


class Grown(Record, frozen=True):
    """A step beside a cache of so many steps.

    Attributes:
        steps: Steps so far.
        cache_bytes: What the cache takes then.
        attention: Time of a step that attends over all of it; measured, in NumPy.
    """

    steps: int
    cache_bytes: int
    attention: Times


class Race(Record, frozen=True):
    """``peers.json``.

    Attributes:
        schema_version: Of this record.
        created: UTC, ISO 8601.
        bundle_sha256: Identity of the bundle.
        model: Its name.
        rounds: Bursts of each.
        core: Where all of them ran.
        facts: The machine.
        moments: Load and temperature before and after.
        rows: Those of stategate first.
        state_bytes: Our memory, at every step.
        grown: The cache that it replaces; empty where it replaces none.
    """

    schema_version: int
    created: str
    bundle_sha256: str
    model: str
    rounds: int
    core: int | None
    facts: dict[str, str | int | float | None]
    moments: tuple[Moment, ...]
    rows: tuple[Row, ...]
    state_bytes: int
    grown: tuple[Grown, ...]


def race(
    path: Path,
    envs: Path | None,
    rounds: int,
    core: int | None,
    report: Callable[[int], None],
    peers: tuple[Entry, ...] = PEERS,
    lengths: tuple[int, ...] = LENGTHS,
    silence_s: float = SILENCE_S,
    burst: int = BURST,
    tolerance: float = TOLERANCE,
) -> Race:
    """Open everybody, check their answers, let them take turns.

    Args:
        path: The bundle.
        envs: Folder of environments; None runs everybody in this one.
        rounds: Bursts of each.
        core: Core of all of them.
        report: Called with the number of rounds done.
        peers: Who runs beside our engines.
        lengths: Steps at which the growing cache is looked at.
        silence_s: Who does not answer for so long is ended.
        burst: Steps that each is timed for in a round.
        tolerance: Of the answers, in units of the largest; more than the default is for those who
            round weights by themselves.
    """
    bundle = Bundle.open(path)
    able, unable = engines(path)
    sessions = [Entry(f"stategate, {engine}", OPEN_SESSION, {"engine": engine}) for engine in able]
    bare = [Entry(BARE, "lab.peers.bare_engine:EngineSubject")] if "native" in able else []
    rows = {
        f"stategate, {text.split(':')[0]}": Row(text.split(":")[0], error=text) for text in unable
    }
    rows = {name: msgspec.structs.replace(row, name=name) for name, row in rows.items()}
    before = moment(0.0, core)
    with ExitStack() as stack:
        running: dict[str, Driver] = {}
        for entry in (*sessions, *bare, *peers):
            opened = _open(entry, path, envs, core, silence_s, tolerance)
            rows[entry.name] = opened[0]
            if opened[1] is not None:
                running[entry.name] = stack.enter_context(opened[1])
        bursts: dict[str, list[np.ndarray]] = {name: [] for name in running}
        order = np.random.default_rng(0)
        for i in range(rounds + 1):
            for name in order.permutation(sorted(running)).tolist():
                try:
                    _, raw = running[name].ask("burst", timed=burst, slot_s=0.0)
                except MeasurementError as problem:
                    rows[name] = Row(name, error=" ".join(str(problem).split()))
                    del running[name], bursts[name]
                    continue
                if i:  # the first round warms up
                    bursts[name].append(np.frombuffer(raw[: 4 * burst], np.uint32) / 1000)
            report(i)
    best = {name: min(float(np.median(us)) for us in all_us) for name, all_us in bursts.items()}
    fastest = min((best[entry.name] for entry in sessions if entry.name in best), default=None)
    return Race(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        bundle_sha256=bundle.digest,
        model=bundle.manifest.model.name,
        rounds=rounds,
        core=core,
        facts=facts(),
        moments=(before, moment(0.0, core)),
        rows=tuple(_timed(row, bursts.get(name), fastest) for name, row in rows.items()),
        state_bytes=bundle.manifest.state_bytes,
        grown=_grown(bundle.manifest.model.kv_bytes_per_step, lengths),
    )


def _open(
    entry: Entry,
    path: Path,
    envs: Path | None,
    core: int | None,
    silence_s: float,
    tolerance: float,
) -> tuple[Row, Driver | None]:
    """Start one and hold its answers against the golden ones."""
    python = sys.executable
    if envs is not None and entry.env:
        failed, python_path = envs / entry.env / ERROR, envs / entry.env / _PYTHON
        if failed.exists() or not python_path.exists():
            reason = failed.read_text().strip() if failed.exists() else "no environment was made"
            return Row(entry.name, error=f"cannot be installed: {reason}"), None
        python = str(python_path)
    try:
        driver = Driver(
            str(path),
            maker=entry.maker,
            more=entry.more,
            core=core,
            python=python,
            # Peers are opened by their names in this folder, and it is installed nowhere.
            env={"PYTHONPATH": os.pathsep.join([str(_ROOT), *_python_path()])},
            silence_s=silence_s,
        )
    except MeasurementError as problem:
        return Row(entry.name, error=" ".join(str(problem).split())), None
    try:
        error = driver.ask("parity")[0]["max_output_error"]
    except MeasurementError as problem:
        driver.close()
        return Row(entry.name, error=" ".join(str(problem).split())), None
    if error is None or not error <= tolerance:
        driver.close()
        reason = f"answers otherwise: error {error}, at most {tolerance} is let pass"
        return Row(entry.name, max_output_error=error, error=reason), None
    hello = driver.hello
    row = Row(
        entry.name,
        engine=hello["engine"],
        resident_bytes=hello["opened_bytes"] - hello["before_bytes"],
        first_answer_s=hello["first_answer_s"],
        max_output_error=error,
    )
    return row, driver


def _python_path() -> list[str]:
    return list(filter(None, [os.environ.get("PYTHONPATH")]))


def _timed(row: Row, bursts: list[np.ndarray] | None, fastest: float | None) -> Row:
    if not bursts:
        return row
    medians = [float(np.median(us)) for us in bursts]
    best = int(np.argmin(medians))
    p99 = np.quantile(bursts[best], 0.99, method="inverted_cdf")
    return msgspec.structs.replace(
        row,
        best_p50_us=medians[best],
        median_p50_us=float(np.median(medians)),
        best_p99_us=float(p99),
        over_ours=medians[best] / fastest if fastest else None,
    )


def _grown(kv_bytes_per_step: int | None, lengths: tuple[int, ...]) -> tuple[Grown, ...]:
    """One float32 key and one value of equal width make the bytes of a step."""
    if kv_bytes_per_step is None or not lengths:
        return ()
    return tuple(
        Grown(length.steps, length.steps * kv_bytes_per_step, length.times)
        for length in measure(kv_bytes_per_step // 8, lengths)
    )


def lines(result: Race) -> list[str]:
    """A table for the terminal."""
    texts = [
        f"{'us':<30} {'best p50':>9} {'median':>9} {'best p99':>9} {'over ours':>9} {'MiB':>6}"
    ]
    failed = [row for row in result.rows if row.error is not None]
    ran = [row for row in result.rows if row not in failed]
    for row in sorted(ran, key=lambda row: row.best_p50_us or 0.0):
        us = (row.best_p50_us, row.median_p50_us, row.best_p99_us, row.over_ours)
        figures = " ".join("        -" if value is None else f"{value:9.2f}" for value in us)
        texts.append(f"{row.name:<30} {figures} {(row.resident_bytes or 0) / 2**20:6.0f}")
    texts += [f"{row.name:<30} {row.error}" for row in failed]
    for grown in result.grown:
        texts.append(
            f"KV attention after {grown.steps:>7,} steps: p50 {grown.attention.p50_us:9.1f} us, "
            f"{grown.cache_bytes:>12,} bytes beside {result.state_bytes:,}"
        )
    return texts


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--envs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of environments that `make bench-peers` makes; all in this one if left out.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=16, show_default=True, help="Bursts of each."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="For peers.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def peers(bundle: Path, envs: Path | None, rounds: int, out: Path | None, as_json: bool) -> None:
    """Step BUNDLE in our engines and in other people's runtimes, burst beside burst.

    \b
    Example:
      python -m lab peers build/aura --envs build/peers --out build/bench
    """
    contenders([bundle])
    if out is not None:
        check_writable(out / "peers.json")
    with progress(rounds, "racing") as report:
        result = race(bundle, envs, rounds, last_core(), report)
    if out is not None:
        write_whole(out / "peers.json", to_json(result))
    click.echo(to_json(result).decode() if as_json else "\n".join(lines(result)))
