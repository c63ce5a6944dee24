"""``stategate bench``: measure bundles on this machine, draw the page, compare two results."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from stategate.bench.record import BenchResult, Options, read_result, to_json
from stategate.bench.report.compare import MARGIN, compare
from stategate.cli.options import json_option
from stategate.cli.wear import finite
from stategate.common.console import progress
from stategate.contract import Bundle, EpisodeSet
from stategate.contract.durable import check_writable, whole_file, write_whole
from stategate.contract.staging import scratch_folder
from stategate.runtime.engines.engine import ENGINES

if TYPE_CHECKING:
    from stategate.bench.measure.harness import Contender
    from stategate.bench.measure.segments import Segments
    from stategate.bench.measure.sensors import Meter

_PARTS = "bench.part"
_SECONDS = {"default": 60.0, "quick": 1.5, "official": 600.0}


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    show_default=True,
    type=click.Choice([*ENGINES, "all"]),
    help="Engine of each bundle; may be given again, and `all` is every one that can.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Some 5 seconds for each bundle and engine: does it work, and roughly how fast.",
)
@click.option("--official", is_flag=True, help="600 seconds, the length that MLPerf asks for.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.5, max=86_400),
    help="Length of the bursts together; 60 if left out.",
)
@click.option(
    "--rate",
    "rates_hz",
    type=click.FloatRange(min=0.1, max=100_000),
    multiple=True,
    default=(30.0, 100.0, 1000.0),
    show_default=True,
    help="Steps a second to be kept up with; may be given again.",
)
@click.option(
    "--idle-ms",
    type=click.FloatRange(min=0, max=10_000),
    default=100.0,
    show_default=True,
    help="Idle gap before a first step.",
)
@click.option(
    "--episode",
    type=click.Path(exists=True, path_type=Path),
    help="Recorded inputs, a .npz or a folder of them; the golden episode if left out.",
)
@click.option(
    "--core", type=click.IntRange(min=0), help="Core that every subject runs on; the last one."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the order of the bursts.",
)
@click.option("--fresh", is_flag=True, help="Throw an interrupted measurement in --out away.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results.")
@json_option
def run(
    bundles: tuple[Path, ...],
    engines: tuple[str, ...],
    quick: bool,
    official: bool,
    seconds: float | None,
    rates_hz: tuple[float, ...],
    idle_ms: float,
    episode: Path | None,
    core: int | None,
    seed: int,
    fresh: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure BUNDLES in turns: step times, tails, writes, memory, energy.

    An interrupted measurement goes on when the same command is given again.

    \b
    Examples:
      stategate bench run build/aura --quick
      stategate bench build/aura --engine all --out build/bench
      stategate bench build/aura build/aura-int8 --rate 100
    """
    from stategate.bench.measure.harness import contenders, last_core

    if quick + official + (seconds is not None) > 1:
        raise click.UsageError("--quick, --official and --seconds contradict each other; give one")
    if not all(map(math.isfinite, (seconds or 0, idle_ms, *rates_hz))):
        raise click.UsageError("--seconds, --idle-ms and --rate take finite numbers")
    mode = "quick" if quick else "official" if official else "default"
    options = Options(
        mode=mode,
        seconds=seconds or _SECONDS[mode],
        slot_s=0.1 if quick else 0.25,
        rates_hz=tuple(sorted(set(rates_hz))),
        idle_s=idle_ms / 1000,
        core=last_core() if core is None else core,
        seed=seed,
        episode=str(episode) if episode is not None else None,
    )
    if options.core is not None and options.core not in os.sched_getaffinity(0):
        raise click.BadParameter(
            f"core {options.core} is not there; this process may use "
            f"{sorted(os.sched_getaffinity(0))}",
            param_hint="--core",
        )
    chosen = contenders(bundles, engines, options.episode)
    if out is not None:
        check_writable(out / "bench.json")
        remains = f"what was measured is kept in {out}; the same command goes on from there"
        result = _measure(chosen, options, out / _PARTS, fresh, remains, out)
    else:
        with scratch_folder() as folder:
            remains = "nothing is kept without --out"
            result = _measure(chosen, options, Path(folder) / "results" / _PARTS, fresh, remains)
    if as_json:
        click.echo(to_json(result).decode(), nl=False)
        return

    from stategate.bench.report.page import lines

    click.echo("\n".join(lines(result)))
    if out is not None:
        click.echo("\n".join(str(out / f"bench.{kind}") for kind in ("json", "html", "md", "npz")))


def _measure(
    chosen: list[Contender],
    options: Options,
    parts: Path,
    fresh: bool,
    remains: str,
    out: Path | None = None,
) -> BenchResult:
    """Measure into ``parts``, from which an interrupted measurement goes on; results to ``out``."""
    from stategate.bench.measure.harness import measure_bursts
    from stategate.bench.measure.result import assemble
    from stategate.bench.measure.segments import Segments
    from stategate.bench.measure.sensors import Meter, versions

    plan = {
        "host": platform.node(),
        "versions": versions(),
        "options": msgspec.to_builtins(options),
        "episode": EpisodeSet.open(options.episode).digest if options.episode else None,
        "subjects": [[Bundle.open(c.bundle).digest, c.engine] for c in chosen],
    }
    segments = Segments(parts, plan, fresh)
    if segments.rounds:
        click.echo(f"going on after {segments.measured_s:.0f} seconds", err=True)
    meter = Meter()
    notes: list[str] = []
    try:
        idle_watts = _idle_watts(meter, 4 * options.slot_s)
        with progress(int(10 * options.seconds), "stepping", remains) as report:
            hellos = measure_bursts(chosen, options, segments, meter, report)
    finally:
        meter.close()
    if meter.lost is not None:
        notes.append(f"the energy sensor vanished during the measurement: {meter.lost}")
    with progress(len(chosen), "cold starts, rates, allocations", remains) as report:
        result = assemble(
            chosen, options, segments, hellos, idle_watts, meter.sensor, notes, report
        )
    if out is not None:
        write_whole(out / "bench.json", to_json(result))
        write_report(result, out)
        _keep_samples(out / "bench.npz", segments, [contender.name for contender in chosen])
    segments.discard()
    return result


def write_report(result: BenchResult, folder: Path) -> tuple[Path, Path]:
    """Page and Markdown, from the record alone; returns their paths."""
    from stategate.bench.report.page import html, markdown

    page, text = folder / "bench.html", folder / "bench.md"
    write_whole(page, html(result).encode())
    write_whole(text, markdown(result).encode())
    return page, text


def _idle_watts(meter: Meter, seconds: float) -> float | None:
    """Power of the machine before anything steps."""
    before, start = meter.joules(), time.monotonic()
    if before is None:
        return None
    time.sleep(seconds)
    after = meter.joules()
    return (after - before) / (time.monotonic() - start) if after is not None else None


def _keep_samples(path: Path, segments: Segments, names: list[str]) -> None:
    save: Callable[..., Any] = np.savez_compressed  # its stub takes keywords for allow_pickle
    with whole_file(path) as file:
        save(file, **dict(segments.samples(names)))


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@json_option
def report(result: Path, as_json: bool) -> None:
    """Draw page and Markdown of a RESULT again, next to it.

    \b
    Example:
      stategate bench report build/bench/bench.json
    """
    check_writable(result)
    paths = write_report(read_result(result), result.parent)
    click.echo(json.dumps([str(p) for p in paths]) if as_json else "\n".join(map(str, paths)))


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--margin",
    type=click.FloatRange(min=0, max=10),
    default=MARGIN,
    show_default=True,
    callback=finite,
    help="Smallest change that counts, as a share.",
)
@json_option
def compare_command(before: Path, after: Path, margin: float, as_json: bool) -> None:
    """Say whether AFTER is slower than BEFORE, or the machine was; exit code 1 if it is.

    \b
    Example:
      stategate bench compare before/bench.json build/bench/bench.json
    """
    comparison = compare(read_result(before), read_result(after), margin)
    if as_json:
        click.echo(json.dumps(asdict(comparison) | {"regressed": comparison.regressed}, indent=2))
    else:
        for change in comparison.changes:
            click.echo(
                f"{change.subject:<20} {change.figure} {change.before_us:9.1f} us before, "
                f"{change.after_us:9.1f} after; at the same pace {change.ratio:.3f} "
                f"({change.low:.3f} to {change.high:.3f}): {change.verdict}"
            )
        for note in comparison.notes:
            click.echo(f"note: {note}")
    if comparison.regressed:
        click.get_current_context().exit(1)
