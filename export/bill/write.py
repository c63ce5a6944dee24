"""A bill of materials of a bundle, in one of two formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stategate.contract import Bundle
from stategate.contract.arguments import checks_kinds
from stategate.contract.bundle import refuse_inside_bundle
from stategate.contract.durable import write_whole
from stategate.contract.errors import SpecError
from stategate.contract.records import canonical_json
from stategate.export.bill.about import About
from stategate.export.bill.cyclonedx import cyclonedx
from stategate.export.bill.facts import facts_of
from stategate.export.bill.spdx import spdx

Format = Literal["cyclonedx", "spdx"]
_WRITERS = {"cyclonedx": cyclonedx, "spdx": spdx}


@checks_kinds
def bill(
    bundle: str | Path | Bundle,
    out: str | Path | None = None,
    *,
    format: Format = "cyclonedx",
    about: About | str | Path | None = None,
) -> bytes:
    """Say what is in a bundle: model, data digests, licences, tools, metrics, limits.

        stategate.bill("build/policy", "policy.cdx.json", about="about.json")

    Args:
        bundle: It is opened, and every digest checked.
        out: Where the document is written, whole or not at all; nowhere where it is None.
        format: ``cyclonedx`` (1.7) or ``spdx`` (3.0.1).
        about: What no bundle can know: supplier, licence, purpose, data, risks. What it leaves
            out is said as NOASSERTION.

    Returns:
        The document as JSON: the same bytes for the same bundle, declaration and installed tools.

    Raises:
        BundleError: There is no whole bundle.
        SpecError: The declaration cannot be read, or there is no such format.
        ResultError: Nothing can be written at ``out``.
    """
    if format not in _WRITERS:
        raise SpecError("there is no such format", found=format, expected=" or ".join(_WRITERS))
    declared = about if isinstance(about, About) else About.load(about) if about else About()
    facts = facts_of(Bundle.open(bundle), declared)
    raw = canonical_json(_WRITERS[format](facts))
    if out is not None:
        write_whole(refuse_inside_bundle(Path(out)), raw)
    return raw
