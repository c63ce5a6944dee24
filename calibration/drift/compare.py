"""A candidate beside its float model over long episodes, judged and sealed, in one call."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import msgspec

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.drift.loop import drift
from stategate.calibration.drift.record import DriftLimits, DriftReport
from stategate.calibration.recordings import Episodes, on_disk
from stategate.common import console
from stategate.contract import (
    Bundle,
    FileRef,
    canonical_json,
    refuse_to_replace,
    sha256,
    write_bundle,
)
from stategate.contract.arguments import checks_kinds
from stategate.contract.durable import check_writable
from stategate.contract.errors import CalibrationError, SpecError
from stategate.contract.manifest import DriftReceipt
from stategate.contract.numbers import whole

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


@checks_kinds
def compare(
    float_bundle: str | Path | Bundle,
    candidate: str | Path | Bundle,
    episodes: Episodes,
    *,
    steps: int | None = None,
    limits: DriftLimits = DriftLimits(),  # noqa: B008  (frozen)
    out: str | Path | None = None,
    sealed: str | Path | None = None,
    accept: str | None = None,
    swapped: str = "",
    progress: console.Progress | None = None,
) -> DriftReport:
    """Step a candidate beside its float model, each in closed loop on its own state.

        report = stategate.compare("build/float", "build/int8", "held-out.npz", sealed="build/done")
        report.save("drift.html")
        assert report.passed, report.findings

    Args:
        float_bundle: Sealed, in float32, for one session.
        candidate: The bundle that is judged.
        episodes: Held-out recordings; labels in them are judged.
        steps: Of each episode, repeated where it is shorter; its own length where it is None.
        limits: What the figures are held against.
        out: Folder for ``drift.json`` and ``drift.html``, outside of the bundles.
        sealed: Where the candidate is written as a sealed bundle, if it passes or is accepted.
        accept: ``"WHO: WHY"`` seals a candidate that is beyond its limits. One that fails (NaN in a
            state, an output that is not finite) is sealed for nobody.
        swapped: What to do where the two bundles are the wrong way round.
        progress: Called with stage, steps done and steps in all.

    Raises:
        CalibrationError: The first is not sealed in float32, the bundles do not take and give the
            same, the float model fails, or the candidate cannot be sealed.
        EpisodeError: There are no episodes, or one does not fit the model.
        BundleError: One of them is no bundle, or something else is at ``sealed``.
        SpecError: ``accept`` does not say who and why, or there is nothing to be sealed.
    """
    if console.who_and_why(accept) is not None and sealed is None:
        raise SpecError(
            "a candidate is accepted when it is sealed", expected="--seal BUNDLE with --accept"
        )
    steps = None if steps is None else whole("steps", steps)
    reference, judged = Bundle.open(float_bundle), Bundle.open(candidate)
    folder = None if out is None else Path(out).resolve()
    around = set() if folder is None else {folder, *folder.parents}
    if folder is not None:
        if {reference.path.resolve(), judged.path.resolve()} & around:
            raise SpecError("the report needs a folder outside of the bundles", found=folder)
        check_writable(folder / REPORT)
        import_module("stategate.calibration.drift.page")  # what plots lack is said before the work
    check_judge(reference, judged, swapped)
    if sealed is not None:
        sealed = Path(sealed)
        if sealed.resolve() in {reference.path.resolve(), *around}:
            raise SpecError(
                "the sealed bundle needs a folder apart from the float one and from the report",
                found=sealed,
            )
        check_sealable(reference, judged)
        refuse_to_replace(sealed)
    with on_disk(episodes) as files:
        horizon = steps or max(file.steps for file in files.files)
        total = len(files) * steps if steps else files.steps
        with console.progress(total, "stepping both", listener=progress) as report:
            result = drift(
                reference.path,
                judged.path,
                files,
                horizon,
                repeat=steps is not None,
                limits=limits,
                report=report,
            )
    if folder is not None:
        result.save(folder / REPORT)
        result.save(folder / "drift.html")
    if sealed is not None:
        seal(sealed, reference, judged, result, canonical_json(result), accept)
    return result
