"""Bundles for many devices: the same graphs with another target, where legal and large enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stategate.bench.fits.footprint import footprint, plan_of
from stategate.contract import Bundle, write_bundle
from stategate.contract.bundle import MANIFEST
from stategate.contract.errors import BundleError, OutputError
from stategate.contract.reading import read_json
from stategate.targets import TargetProfile
from stategate.targets.fits import Costs, Verdict, fit

REPORT = "report.json"
_ERROR = re.compile(r"^\w+Error: ")


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model in one precision on one device.

    Attributes:
        model: Its name.
        precision: Its plan's name.
        verdict: Whether it fits; a bundle is written unless it is illegal or too large.
        reason: Why.
        needs_bytes: Predicted resident memory.
        bundle: Folder of the bundle for this device, below that of the report; None: refused.
        candidate: Whether it is one in lower precision that no drift test has judged.
    """

    model: str
    precision: str
    verdict: Verdict
    reason: str
    needs_bytes: int
    bundle: str | None
    candidate: bool


class TargetReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All cells of one device."""

    target: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An export that gave no bundle, and what it said."""

    model: str
    precision: str
    reason: str


def retarget(
    bundles: list[Path],
    target: TargetProfile,
    costs: Costs,
    out: Path,
    report: Callable[[int], None] = lambda _: None,
) -> TargetReport:
    """Write bundles again for a device, those that are legal there and fit.

    Graphs and receipts stay as they are: a target changes nothing of what is computed.

    Args:
        bundles: Folders of bundles for any target.
        target: The device.
        costs: What the engine adds to a bundle's memory.
        out: A bundle goes to ``out/MODEL-PRECISION``.
        report: Called with the number of bundles done.

    Raises:
        BundleError: One of them is damaged, or two are of the same model and precision.
    """
    cells: list[Cell] = []
    for done, path in enumerate(bundles, 1):
        bundle = Bundle.open(path)
        print_, plan = footprint(bundle), plan_of(bundle)
        found = fit(print_, plan, target, costs, horizon_steps=1)
        name = re.sub(r"[^\w.-]+", "-", f"{print_.model}-{print_.precision}").strip("-")
        if any((c.model, c.precision) == (print_.model, print_.precision) for c in cells):
            raise BundleError("two bundles would go to one folder", found=f"{name}, from {path}")
        kept = found.verdict in ("fits", "unknown")
        if kept:
            files = {file.path: bundle.read(file) for file in bundle.manifest.all_files}
            manifest = msgspec.structs.replace(bundle.manifest, target=target.ref())
            write_bundle(out / name, manifest, files)
        cells.append(
            Cell(
                model=print_.model,
                precision=print_.precision,
                verdict=found.verdict,
                reason=found.reason,
                needs_bytes=found.memory.total,
                bundle=name if kept else None,
                candidate=bundle.manifest.standing == "candidate",
            )
        )
        report(done)
    return TargetReport(target.name, tuple(cells))


def read_matrix(folder: Path) -> tuple[list[TargetReport], list[Refusal]]:
    """What ``make matrix`` left in its folder: a report for each device, and refused exports.

    Raises:
        OutputError: There is no report, or one cannot be read.
    """
    paths = sorted(folder.glob(f"targets/*/{REPORT}"))
    if not paths:
        raise OutputError(
            "there is no matrix", found=folder, expected=f"targets/*/{REPORT}", remedy="make matrix"
        )
    reports = []
    for path in paths:
        try:
            reports.append(read_json(path, TargetReport))
        except (OSError, msgspec.MsgspecError) as problem:
            raise OutputError(f"{path} is no report", found=str(problem)) from problem
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
