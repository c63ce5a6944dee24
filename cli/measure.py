"""``stategate plot``, ``stategate bench-overhead``, ``stategate pace`` and ``stategate soak``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from stategate.cli.options import json_option
from stategate.common.console import progress
from stategate.contract import load_episode
from stategate.contract.durable import check_writable, write_whole

F = TypeVar("F", bound=Callable[..., Any])


def _in_turns(command: F) -> F:
    """The options of what is timed burst by burst."""
    positive = click.IntRange(min=1)
    rounds = click.option(
        "--rounds", type=positive, default=20, show_default=True, help="Bursts of each."
    )
    burst = click.option(
        "--burst", type=positive, default=500, show_default=True, help="Steps in a burst."
    )
    return rounds(burst(command))


def _finish(result: Any, out: Path | None, as_json: bool, lines: list[str]) -> None:
    """Write a result where it is asked for, and print it as JSON or in words."""
    record = json.dumps(result, indent=2)
    if out is not None:
        write_whole(out, record.encode() + b"\n")
    click.echo(record if as_json else "\n".join(lines))


@click.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@json_option
def plot(ledger: Path, as_json: bool) -> None:
    """Draw the memory and the writes of a run next to its LEDGER, as PNG and SVG.

    \b
    Example:
      stategate bench plot build/run/ledger.json
    """
    from stategate.bench.report.plots import draw_run, read_run

    paths = draw_run(read_run(ledger), ledger.with_name("memory"))
    click.echo(json.dumps([str(p) for p in paths]) if as_json else "\n".join(map(str, paths)))


@click.command("bench-overhead")
@click.argument("bundle", type=click.Path(path_type=Path))
@_in_turns
@click.option("--out", type=click.Path(path_type=Path), help="Folder for overhead.json.")
@json_option
def bench_overhead(bundle: Path, rounds: int, burst: int, out: Path | None, as_json: bool) -> None:
    """Compare a counted step of BUNDLE with plain ONNX Runtime, in turns and in one run.

    \b
    Example:
      stategate bench overhead build/aura --out build/bench
    """
    path = out / "overhead.json" if out is not None else None
    if path is not None:
        check_writable(path)

    from stategate.bench.measure.turns import measure_overhead

    with progress(rounds + 1, "measuring") as report:
        result = measure_overhead(bundle, rounds, burst, report)
    lines = [
        f"{way.name:<44} p50 {way.p50_us:6.1f} us  p99 {way.p99_us:6.1f} us  "
        f"best round {way.best_round_p50_us:6.1f} us"
        for way in result.ways
    ]
    lines += [
        f"checks for NaN and Inf: {result.guard_quiet_us:.2f} us in a quiet step, "
        f"{result.guard_write_us:.2f} us in a write",
        f"session with budget over the fastest bound call: {result.ratio:.2f}",
        f"plain session over run(): {result.session_over_run:.2f}",
    ]
    _finish(asdict(result), path, as_json, lines)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@_in_turns
@click.option("--out", type=click.Path(path_type=Path), help="The list (.json).")
@json_option
def pace(
    bundles: tuple[Path, ...], rounds: int, burst: int, out: Path | None, as_json: bool
) -> None:
    """Time a step of each of BUNDLES, in turns and in one run, against the first.

    \b
    Example:
      stategate bench pace build/float build/int8
    """
    if out is not None:
        check_writable(out)

    from stategate.bench.measure.turns import measure_pace

    with progress(rounds + 1, "measuring") as report:
        result = measure_pace(bundles, rounds, burst, report)
    lines = [f"{p.bundle}: p50 {p.p50_us:.1f} us, {p.ratio:.2f} times the first" for p in result]
    _finish([asdict(one) for one in result], out, as_json, lines)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, path_type=Path),
    help="Recorded inputs, a .npz or a folder of them; the golden episode if left out.",
)
@click.option(
    "--steps", type=click.IntRange(min=40_000), default=1_000_000, show_default=True, help="Steps."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for soak.json.")
@json_option
def soak(
    bundle: Path, episode_path: Path | None, steps: int, out: Path | None, as_json: bool
) -> None:
    """Step BUNDLE for a long time, and see whether its memory or its pace changes.

    \b
    Example:
      stategate bench soak build/aura --steps 1000000 --out build/bench
    """
    path = out / "soak.json" if out is not None else None
    if path is not None:
        check_writable(path)

    from stategate.bench.measure.soak import run_soak

    episode = load_episode(episode_path, steps) if episode_path else None
    with progress(steps, "soaking") as report:
        result = run_soak(bundle, episode, steps, report)
    slope = result.rss_slope_bytes_per_million_steps
    change = "too few for a slope" if slope is None else f"{slope:+,.0f} bytes per million steps"
    lines = [
        f"{result.steps:,} steps of {result.model}, {result.writes:,} writes",
        f"resident memory grew by {result.rss_growth_bytes:,} bytes after the first "
        f"{result.warm_steps:,} steps, in {result.rss_jumps} jumps; {change}",
        f"as long a loop of ONNX Runtime alone grew by {result.engine_rss_growth_bytes:,} bytes, "
        f"an empty one by {result.empty_rss_growth_bytes:,}",
        f"Python objects grew by {result.python_growth_bytes:,} bytes",
        f"p99 of the first {result.window:,} steps {result.p99_first_us:.1f} us, "
        f"of the last {result.p99_last_us:.1f} us",
    ]
    _finish(asdict(result), path, as_json, lines)
