"""``python -m lab sbom``: bills of materials, held against a published measure of completeness."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec

import stategate
from stategate.contract import Bundle
from stategate.contract.records import canonical_json
from stategate.export.bill.about import NOASSERTION

# OWASP AIBOM Generator 1.0.2 (Apache-2.0), at this commit; fetched by `make sbom`.
SCORER = Path("build/aibom-generator")
COMMIT = "c5a3f2f647b801ab4ab7569aade4a6cdaf1f9591"
MEASURE = {
    "name": "OWASP AIBOM Generator, calculate_completeness_score",
    "version": "1.0.2",
    "commit": COMMIT,
    "how": "src/models/scoring.py imported alone, with its field registry and schemas",
}


def completeness(document: dict[str, Any]) -> dict[str, Any]:
    """The published score of a CycloneDX document, 0 to 100.

    Returns:
        ``score`` with everything that is NOASSERTION taken out first, which is stricter than the
        measure; ``score_with_noassertion`` as the measure has it; ``missing`` fields of the first.
    """
    scoring = _scoring()
    strict = scoring.calculate_completeness_score(_asserted(document), validate=False)
    usual = scoring.calculate_completeness_score(document, validate=True)
    return {
        "score": strict["total_score"],
        "score_with_noassertion": usual["total_score"],
        "valid": usual["validation"]["valid"],
        "sections": strict["section_scores"],
        "missing": sorted(name for names in strict["missing_fields"].values() for name in names),
    }


def _scoring() -> Any:
    """Its module of scores; the package around it would import torch, Flask and the Hub."""
    if "src.models" not in sys.modules:
        package = ModuleType("src.models")
        package.__path__ = [str(SCORER / "src" / "models")]
        sys.modules["src.models"] = package
    return importlib.import_module("src.models.scoring")


def _asserted(value: Any) -> Any:
    """Without what is NOASSERTION, and without what is empty then."""
    if isinstance(value, dict):
        named = {"name", "value"} <= value.keys() and value["value"] == NOASSERTION
        items = {} if named else {name: _asserted(item) for name, item in value.items()}
        return {name: item for name, item in items.items() if item not in (None, [], {})}
    if isinstance(value, list):
        return [item for item in map(_asserted, value) if item not in (None, [], {})]
    return None if value == NOASSERTION else value


@click.command("sbom")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--about", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Scores as JSON.")
def sbom(bundles: tuple[Path, ...], about: Path, out: Path) -> None:
    """Write bills of BUNDLES next to OUT, and score them with and without a declaration."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in bundles:
        bundle = Bundle.open(path)
        name = bundle.manifest.model.name
        for declared in (None, about):
            stem = out.parent / f"{name}{'' if declared is None else '-declared'}"
            raw = stategate.bill(bundle, f"{stem}.cdx.json", about=declared)
            stategate.bill(bundle, f"{stem}.spdx.json", format="spdx", about=declared)
            row = completeness(msgspec.json.decode(raw))
            rows.append({"bundle": name, "declaration": declared and about.name, **row})
            click.echo(f"{row['score']:6.1f} of 100  {stem}.cdx.json")
    out.write_bytes(canonical_json({"measure": MEASURE, "rows": rows}))
