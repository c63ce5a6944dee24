"""``stategate bench``: measure bundles on this machine, draw the page, compare two results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stategate.bench.record import Options, read_result
from stategate.bench.report.compare import MARGIN, Comparison, compare
from stategate.cli.options import (
    ANY_PATH,
    FOLDER,
    INDEX,
    Number,
    bundles_argument,
    episode_option,
    flag,
    option,
    out_option,
    seed_option,
    verb,
)
from stategate.cli.show import leave_unless, show
from stategate.runtime.engines.engine import ENGINES

_SECONDS = {"default": 60.0, "quick": 1.5, "official": 600.0}


@verb()
@bundles_argument
@option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    type=click.Choice([*ENGINES, "all"]),
    help="Engine of each bundle; may be given again, and `all` is every one that can.",
)
@flag("--quick", "Some 5 seconds for each bundle and engine: does it work, and roughly how fast.")
@flag("--official", "600 seconds, the length that MLPerf asks for.")
@option(
    "--seconds", type=Number(0.5, 86_400), help="Length of the bursts together; 60 if left out."
)
@option(
    "--rate",
    "rates_hz",
    type=Number(0.1, 100_000),
    multiple=True,
    callback=lambda ctx, param, rates: tuple(sorted(set(rates))),
    default=(30.0, 100.0, 1000.0),
    help="Steps a second to be kept up with; may be given again.",
)
@option("--idle-ms", type=Number(0, 10_000), default=100.0, help="Idle gap before a first step.")
@episode_option("; the golden episode if left out.")
@option("--core", type=INDEX, help="Core that every subject runs on; the last one.")
@seed_option("Of the order of the bursts.")
@flag("--fresh", "Throw an interrupted measurement in --out away.")
@out_option("Folder for results.", FOLDER, required=False)
def run(
    bundles: tuple[Path, ...],
    engines: tuple[str, ...],
    quick: bool,
    official: bool,
    seconds: float | None,
    idle_ms: float,
    episode: Path | None,
    core: int | None,
    fresh: bool,
    out: Path | None,
    **more: Any,
) -> None:
    """Measure BUNDLES in turns: step times, tails, writes, memory, energy.

    A pool is stepped with a session in every row, and its times are of all rows together.

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
    mode = "quick" if quick else "official" if official else "default"
    options = Options(
        mode=mode,
        seconds=seconds or _SECONDS[mode],
        slot_s=0.1 if quick else 0.25,
        idle_s=idle_ms / 1000,
        core=last_core() if core is None else core,
        episode=str(episode) if episode is not None else None,
        **more,
    )
    if options.core is not None and options.core not in os.sched_getaffinity(0):
        raise click.BadParameter(
            f"core {options.core} is not there; this process may use "
            f"{sorted(os.sched_getaffinity(0))}",
            param_hint="--core",
        )
    chosen = contenders(bundles, engines, options.episode)

    from stategate.bench.measure.run import measure_bundles
    from stategate.bench.report.page import lines

    result = measure_bundles(chosen, options, out, fresh)
    files = [str(out / f"bench.{kind}") for kind in ("json", "html", "md", "npz")] if out else []
    show(result, [*lines(result), *files])


@verb("compare")
@click.argument("before", type=ANY_PATH)
@click.argument("after", type=ANY_PATH)
@option(
    "--margin", type=Number(0, 10), default=MARGIN, help="Smallest change that counts, as a share."
)
def compare_command(before: Path, after: Path, margin: float) -> None:
    """Say whether AFTER is slower than BEFORE, or the machine was; exit code 1 if it is.

    \b
    Example:
      stategate bench compare before/bench.json build/bench/bench.json
    """
    comparison = compare(read_result(before), read_result(after), margin)
    record = asdict(comparison) | {"regressed": comparison.regressed}
    show(record, _changes(comparison))
    leave_unless(not comparison.regressed)


def _changes(comparison: Comparison) -> Iterator[str]:
    for change in comparison.changes:
        yield (
            f"{change.subject:<20} {change.figure} {change.before_us:9.1f} us before, "
            f"{change.after_us:9.1f} after; at the same pace {change.ratio:.3f} "
            f"({change.low:.3f} to {change.high:.3f}): {change.verdict}"
        )
    yield from (f"note: {note}" for note in comparison.notes)
