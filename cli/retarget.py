"""``stategate retarget``: bundles again for another device."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import json_option
from stategate.common.console import progress
from stategate.contract import canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.targets import load
from stategate.targets.fits import load_costs


@click.command("retarget")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Device that they shall be for.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for them and report.json."
)
@json_option
@click.pass_context
def retarget_command(
    context: click.Context, bundles: tuple[Path, ...], target: str, out: Path, as_json: bool
) -> None:
    """Write BUNDLES again for another device, those that are legal there and fit.

    Graphs and receipts stay as they are. Exits with 1 where one was refused.

    \b
    Example:
      stategate device retarget build/aura build/small --target raspberry-pi-5 --out build/pi
    """
    from stategate.bench.fits.retarget import REPORT, retarget

    profile, costs = load(target), load_costs()
    check_writable(out / REPORT)
    with progress(len(bundles), target, "bundles that are done stay") as report:
        result = retarget(list(bundles), profile, costs, out, report)
    write_whole(out / REPORT, canonical_json(result))
    if as_json:
        click.echo(canonical_json(result).decode(), nl=False)
    else:
        for cell in result.cells:
            click.echo(f"{cell.model} {cell.precision}: {cell.verdict}: {cell.reason}")
    if any(cell.bundle is None for cell in result.cells):
        context.exit(1)
