"""Which two bundles can be compared: a candidate, and the sealed float model that judges it."""

from __future__ import annotations

from stategate.contract import Bundle, StepSpec
from stategate.contract.errors import CalibrationError


def can_judge(bundle: Bundle) -> bool:
    """Whether it is sealed and in float32."""
    return not bundle.manifest.is_lower and bundle.manifest.standing == "sealed"


def check_judge(reference: Bundle, candidate: Bundle | None = None, swapped: str = "") -> None:
    """Refuse a float side that is none."""
    if can_judge(reference):
        return
    manifest = reference.manifest
    mixed_up = candidate is not None and can_judge(candidate)
    raise CalibrationError(
        "a candidate is judged by the sealed float model"
        + (", which comes first: the two bundles are the wrong way round" if mixed_up else ""),
        found=f"{reference.path} in {manifest.step_graph.precision}, {manifest.standing}",
        expected="a sealed bundle in float32",
        remedy=swapped
        if mixed_up and swapped
        else "export the model without --precision and --state-storage",
    )


def check_alike(reference: StepSpec, candidate: StepSpec, *, gates: bool = False) -> None:
    """Refuse two bundles that do not take and give the same tensors."""
    for what in ("inputs", "outputs", *(("deciding_gates",) if gates else ())):
        faces = [
            sorted(
                f"{t.name} {getattr(t, 'dtype', None) or t.granularity} {list(t.shape)}"
                for t in getattr(spec, what)
            )
            for spec in (candidate, reference)
        ]
        if faces[0] != faces[1]:
            raise CalibrationError(
                f"the two bundles have different {what.removeprefix('deciding_')} and are not of "
                "one model",
                found=", ".join(faces[0]),
                expected=", ".join(faces[1]),
                remedy="give the float bundle of the model that the candidate was made from",
            )
