"""``python -m lab matrix``: what ``make matrix`` built for many devices, and what was refused."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from stategate.bench.fits.retarget import REPORT, TargetReport
from stategate.contract.bundle import MANIFEST
from stategate.contract.errors import ResultError
from stategate.contract.reading import read_json

_ERROR = re.compile(r"^\w+Error: ")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An export that gave no bundle, and what it said."""

    model: str
    precision: str
    reason: str


@click.command("matrix")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every cell as JSON.")
def matrix_command(folder: Path, as_json: bool) -> None:
    """Show what `make matrix` left in FOLDER: bundles by model, precision and device; refusals.

    \b
    Example:
      python -m lab matrix build/matrix
    """
    reports, refused = read_matrix(folder)
    if as_json:
        cells = {"targets": reports, "refused_exports": refused}
        click.echo(json.dumps(msgspec.to_builtins(cells), indent=2))
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
            built = sum(cell.bundle is not None for cell in cells)
            row += f"{f'{built} of {len(cells)}':>17}"
            for cell in cells:
                if cell.bundle is None:
                    reasons[cell.reason].append(cell.model)
        lines.append(row)
    built = sum(cell.bundle is not None for report in reports for cell in report.cells)
    total = sum(len(report.cells) for report in reports)
    unjudged = sum(cell.candidate and cell.bundle is not None for r in reports for cell in r.cells)
    lines += ["", f"{built} bundles; {total - built} refused by devices, and why:"]
    for reason, models in reasons.items():
        lines.append(f"  {len(models):>3} x {reason}")
    lines.append(f"{unjudged} of the bundles are candidates, to be judged by stategate drift")
    lines += ["", f"{len(refused)} exports refused, and why:"]
    lines += [f"  {one.model} {one.precision}: {one.reason}" for one in refused]
    return lines


def read_matrix(folder: Path) -> tuple[list[TargetReport], list[Refusal]]:
    """What ``make matrix`` left in its folder: a report for each device, and refused exports.

    Raises:
        ResultError: There is no report, or one cannot be read.
    """
    paths = sorted(folder.glob(f"targets/*/{REPORT}"))
    if not paths:
        raise ResultError(
            "there is no matrix", found=folder, expected=f"targets/*/{REPORT}", remedy="make matrix"
        )
    reports = []
    for path in paths:
        try:
            reports.append(read_json(path, TargetReport))
        except (OSError, msgspec.MsgspecError) as problem:
            raise ResultError(f"{path} is no report", found=str(problem)) from problem
    refused = [
        Refusal(log.parent.name, log.stem, _refusal(log.read_text()))
        for log in sorted(folder.glob("exports/*/*.log"))
        if not (log.with_suffix("") / MANIFEST).exists()
    ]
    return reports, refused


def _refusal(text: str) -> str:
    """The first line of an error and what was found."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if _ERROR.match(line)), None)
    if at is None:
        return lines[-1] if lines else "it said nothing"
    return "; ".join(line.strip() for line in lines[at : at + 2])
