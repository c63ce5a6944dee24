"""Bundles for many devices: the same graphs with another target, where legal and large enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from stategate.bench.fits.footprint import footprint, plan_of
from stategate.contract import Bundle, write_bundle
from stategate.contract.errors import BundleError
from stategate.targets import TargetProfile
from stategate.targets.fits import Costs, Verdict, fit

REPORT = "report.json"


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model in one precision on one device."""

    model: str  # its name
    precision: str  # its plan's name
    verdict: Verdict  # whether it fits; a bundle is written unless it is illegal or too large
    reason: str  # why
    needs_bytes: int  # predicted resident memory
    # folder of the bundle for this device, below that of the report; None: refused
    bundle: str | None
    candidate: bool  # whether it is one in lower precision that no drift test has judged


class TargetReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All cells of one device."""

    target: str
    cells: tuple[Cell, ...]


def retarget(
    bundles: list[Path],
    target: TargetProfile,
    costs: Costs,
    out: Path,
    report: Callable[[int], None] = lambda _: None,
) -> TargetReport:
    """Write bundles again for a device, those that are legal there and fit.

    Graphs and receipts stay as they are: a target changes nothing of what is computed.
    """
    cells: list[Cell] = []
    for done, path in enumerate(bundles, 1):
        bundle = Bundle.open(path)
        size, plan = footprint(bundle), plan_of(bundle)
        answer = fit(size, plan, target, costs, horizon_steps=1)
        name = re.sub(r"[^\w.-]+", "-", f"{size.model}-{size.precision}").strip("-")
        if any((c.model, c.precision) == (size.model, size.precision) for c in cells):
            raise BundleError("two bundles would go to one folder", found=f"{name}, from {path}")
        is_written = answer.verdict in ("fits", "unknown")
        if is_written:
            files = {file.path: bundle.read(file) for file in bundle.manifest.all_files}
            manifest = msgspec.structs.replace(bundle.manifest, target=target.ref())
            write_bundle(out / name, manifest, files)
        cells.append(
            Cell(
                model=size.model,
                precision=size.precision,
                verdict=answer.verdict,
                reason=answer.reason,
                needs_bytes=answer.memory.total,
                bundle=name if is_written else None,
                candidate=bundle.manifest.standing == "candidate",
            )
        )
        report(done)
    return TargetReport(target.name, tuple(cells))
