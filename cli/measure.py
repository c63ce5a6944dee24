"""``stategate bench plot``, ``overhead``, ``pace`` and ``soak``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stategate.cli.options import (
    ANY_PATH,
    COUNT,
    bundle_argument,
    bundles_argument,
    episode_option,
    group_of,
    json_option,
    option,
    out_option,
    steps_option,
)
from stategate.cli.show import show, show_paths
from stategate.common.console import progress
from stategate.contract import load_episode
from stategate.contract.durable import check_writable

if TYPE_CHECKING:
    from stategate.bench.measure.soak import Soak
    from stategate.bench.measure.turns import Overhead

_in_turns = group_of(
    option("--rounds", type=COUNT, default=20, help="Bursts of each."),
    option("--burst", type=COUNT, default=500, help="Steps in a burst."),
)


def _record_in(out: Path | None, name: str = "") -> Path | None:
    """Where a record goes, which is looked at before anything is measured."""
    path = out / name if out is not None else None
    if path is not None:
        check_writable(path)
    return path


@click.command()
@click.argument("ledger", type=ANY_PATH)
@json_option
def plot(ledger: Path, as_json: bool) -> None:
    """Draw the memory and the writes of a run next to its LEDGER, as PNG and SVG.

    \b
    Example:
      stategate bench plot build/run/ledger.json
    """
    from stategate.bench.report.plots import draw_run, read_run

    show_paths(draw_run(read_run(ledger), ledger.with_name("memory")), as_json)


@click.command("bench-overhead")
@bundle_argument
@_in_turns
@out_option("Folder for overhead.json.", required=False)
@json_option
def bench_overhead(bundle: Path, rounds: int, burst: int, out: Path | None, as_json: bool) -> None:
    """Compare a counted step of BUNDLE with plain ONNX Runtime, in turns and in one run.

    \b
    Example:
      stategate bench overhead build/aura --out build/bench
    """
    path = _record_in(out, "overhead.json")

    from stategate.bench.measure.turns import measure_overhead

    with progress(rounds + 1, "measuring") as report:
        result = measure_overhead(bundle, rounds, burst, report)
    show(result, as_json, _overhead(result), path)


def _overhead(result: Overhead) -> Iterator[str]:
    for way in result.ways:
        yield (
            f"{way.name:<44} p50 {way.p50_us:6.1f} us  p99 {way.p99_us:6.1f} us  "
            f"best round {way.best_round_p50_us:6.1f} us"
        )
    yield (
        f"checks for NaN and Inf: {result.guard_quiet_us:.2f} us in a quiet step, "
        f"{result.guard_write_us:.2f} us in a write"
    )
    yield f"session with budget over the fastest bound call: {result.ratio:.2f}"
    yield f"plain session over run(): {result.session_over_run:.2f}"


@click.command()
@bundles_argument
@_in_turns
@out_option("The list (.json).", required=False)
@json_option
def pace(
    bundles: tuple[Path, ...], rounds: int, burst: int, out: Path | None, as_json: bool
) -> None:
    """Time a step of each of BUNDLES, in turns and in one run, against the first.

    \b
    Example:
      stategate bench pace build/float build/int8
    """
    path = _record_in(out)

    from stategate.bench.measure.turns import measure_pace

    with progress(rounds + 1, "measuring") as report:
        result = measure_pace(bundles, rounds, burst, report)
    lines = (f"{p.bundle}: p50 {p.p50_us:.1f} us, {p.ratio:.2f} times the first" for p in result)
    show(result, as_json, lines, path)


@click.command()
@bundle_argument
@episode_option("; the golden episode if left out.", "episode_path")
@steps_option("Steps.", 1_000_000, click.IntRange(min=40_000))
@out_option("Folder for soak.json.", required=False)
@json_option
def soak(
    bundle: Path, episode_path: Path | None, steps: int, out: Path | None, as_json: bool
) -> None:
    """Step BUNDLE for a long time, and see whether its memory or its pace changes.

    \b
    Example:
      stategate bench soak build/aura --steps 1000000 --out build/bench
    """
    path = _record_in(out, "soak.json")

    from stategate.bench.measure.soak import run_soak

    episode = load_episode(episode_path, steps) if episode_path else None
    with progress(steps, "soaking") as report:
        result = run_soak(bundle, episode, steps, report)
    show(result, as_json, _soaked(result), path)


def _soaked(result: Soak) -> Iterator[str]:
    slope = result.rss_slope_bytes_per_million_steps
    change = "too few for a slope" if slope is None else f"{slope:+,.0f} bytes per million steps"
    yield f"{result.steps:,} steps of {result.model}, {result.writes:,} writes"
    yield (
        f"resident memory grew by {result.rss_growth_bytes:,} bytes after the first "
        f"{result.warm_steps:,} steps, in {result.rss_jumps} jumps; {change}"
    )
    yield (
        f"as long a loop of ONNX Runtime alone grew by {result.engine_rss_growth_bytes:,} bytes, "
        f"an empty one by {result.empty_rss_growth_bytes:,}"
    )
    yield f"Python objects grew by {result.python_growth_bytes:,} bytes"
    yield (
        f"p99 of the first {result.window:,} steps {result.p99_first_us:.1f} us, "
        f"of the last {result.p99_last_us:.1f} us"
    )
