"""``stategate bench plot``."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import (
    ANY_PATH,
    json_option,
)
from stategate.cli.show import show_paths


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
