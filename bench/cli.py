"""``stategate plot``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stategate.bench.picture import draw, read_run


@click.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def plot(ledger: Path, as_json: bool) -> None:
    """Draw memory and writes over the horizon of a run, beside its LEDGER, as PNG and SVG.

    \b
    Example:
      stategate plot build/run/ledger.json
    """
    paths = draw(read_run(ledger), ledger.with_name("memory"))
    click.echo(json.dumps([str(p) for p in paths]) if as_json else "\n".join(map(str, paths)))
