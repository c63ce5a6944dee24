"""From a drift report to a sealed bundle: the candidate, its report, and who was overruled."""

from __future__ import annotations

from pathlib import Path

import msgspec

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.drift.record import DriftReport
from stategate.contract import Bundle, DriftReceipt, FileRef, sha256, write_bundle
from stategate.contract.errors import CalibrationError

REPORT = "drift.json"


def check_sealable(reference: Bundle, candidate: Bundle) -> None:
    """Refuse, before they are stepped, two bundles of which one cannot vouch for the other."""
    weights = [bundle.manifest.model.sha256 for bundle in (candidate, reference)]
    if weights[0] != weights[1]:
        raise CalibrationError(
            "the candidate is not made from the float bundle's model",
            found=f"weights {weights[0][:12]}",
            expected=f"weights {weights[1][:12]}",
            remedy="export both from one model",
        )
    check_judge(reference, candidate)
    if candidate.manifest.verification is None:
        raise CalibrationError(
            "the candidate was never held against its model",
            found=f"{candidate.path} without a verification receipt",
            remedy="make it with stategate export, or stategate adopt",
        )


def seal(
    out: Path,
    reference: Bundle,
    candidate: Bundle,
    result: DriftReport,
    report: bytes,
    accepted: str | None,
) -> Bundle | None:
    """Write the candidate with its receipt; None, and nothing written, where it must not be."""
    if not result.may_be_sealed(accepted):
        return None
    old = candidate.manifest
    files = {f.path: candidate.read(f) for f in old.all_files if f.path != REPORT} | {
        REPORT: report
    }
    ref = FileRef(REPORT, sha256(report))
    receipt = DriftReceipt(
        ref,
        reference.digest,
        result.total.steps,
        result.findings,
        accepted if result.findings else None,
    )
    others = (f for f in old.files if f.path != REPORT)
    manifest = msgspec.structs.replace(old, files=(*others, ref), drift=receipt)
    return write_bundle(out, manifest, files)
