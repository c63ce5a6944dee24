"""``stategate bench plot`` and ``pace``."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import (
    ANY_PATH,
    COUNT,
    bundles_argument,
    json_option,
    option,
    out_option,
)
from stategate.cli.show import show, show_paths
from stategate.common.console import progress
from stategate.contract.durable import check_writable


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


@click.command()
@bundles_argument
@option("--rounds", type=COUNT, default=20, help="Bursts of each.")
@option("--burst", type=COUNT, default=500, help="Steps in a burst.")
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
    if out is not None:
        check_writable(out)

    from stategate.bench.measure.pace import measure_pace

    with progress(rounds + 1, "measuring") as report:
        result = measure_pace(bundles, rounds, burst, report)
    lines = (f"{p.bundle}: p50 {p.p50_us:.1f} us, {p.ratio:.2f} times the first" for p in result)
    show(result, as_json, lines, out)
