"""``stategate retarget`` and ``stategate matrix``: bundles for many devices, and refusals."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stategate.common.console import progress
from stategate.contract import canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.targets import load
from stategate.targets.fits import load_costs

if TYPE_CHECKING:
    from stategate.bench.fits.matrix import Refusal, TargetReport


@click.command("retarget")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Device that they shall be for.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for them and report.json."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def retarget_command(
    context: click.Context, bundles: tuple[Path, ...], target: str, out: Path, as_json: bool
) -> None:
    """Write BUNDLES again for another device, those that are legal there and fit.

    Graphs and receipts stay as they are. Exits with 1 where one was refused.

    \b
    Example:
      stategate retarget build/aura build/small --target jetson-orin-nano-8gb --out build/orin
    """
    from stategate.bench.fits.matrix import REPORT, retarget

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


@click.command("matrix")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every cell as JSON.")
def matrix_command(folder: Path, as_json: bool) -> None:
    """Show what `make matrix` left in FOLDER: bundles by model, precision and device; refusals.

    \b
    Example:
      stategate matrix build/matrix
    """
    from stategate.bench.fits.matrix import read_matrix

    reports, refused = read_matrix(folder)
    if as_json:
        found = {"targets": reports, "refused_exports": refused}
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    for line in _table(reports, refused):
        click.echo(line)


def _table(reports: list[TargetReport], refused: list[Refusal]) -> list[str]:
    """A row a device, a column a precision: bundles of the models that were exported in it."""
    precisions = list(dict.fromkeys(c.precision for report in reports for c in report.cells))
    lines = [f"{'bundles':<24}" + "".join(f"{name:>17}" for name in precisions)]
    reasons: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        row = f"{report.target:<24}"
        for precision in precisions:
            cells = [cell for cell in report.cells if cell.precision == precision]
            made = sum(cell.bundle is not None for cell in cells)
            row += f"{f'{made} of {len(cells)}':>17}"
            for cell in cells:
                if cell.bundle is None:
                    reasons[cell.reason].append(cell.model)
        lines.append(row)
    made = sum(cell.bundle is not None for report in reports for cell in report.cells)
    total = sum(len(report.cells) for report in reports)
    unjudged = sum(cell.candidate and cell.bundle is not None for r in reports for cell in r.cells)
    lines += ["", f"{made} bundles; {total - made} refused by devices, and why:"]
    for reason, models in reasons.items():
        lines.append(f"  {len(models):>3} x {reason}")
    lines.append(f"{unjudged} of the bundles are candidates, to be judged by stategate drift")
    lines += ["", f"{len(refused)} exports refused, and why:"]
    lines += [f"  {one.model} {one.precision}: {one.reason}" for one in refused]
    return lines
