"""``stategate device retarget``: bundles again for another device."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import bundles_argument, json_option, option, out_option
from stategate.cli.show import leave_unless, show
from stategate.common.console import progress
from stategate.contract.durable import check_writable
from stategate.targets import load
from stategate.targets.fits import load_costs


@click.command("retarget")
@bundles_argument
@option("--target", required=True, help="Device that they shall be for.")
@out_option("Folder for them and report.json.")
@json_option
def retarget_command(bundles: tuple[Path, ...], target: str, out: Path, as_json: bool) -> None:
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
    lines = (f"{c.model} {c.precision}: {c.verdict}: {c.reason}" for c in result.cells)
    show(result, as_json, lines, out / REPORT)
    leave_unless(all(cell.bundle is not None for cell in result.cells))
