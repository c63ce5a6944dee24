from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import spdx_python_model
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import stategate
from lab.bill import SCORER, completeness
from lab.reproducible import MODEL
from stategate.cli.main import main
from stategate.contract import Bundle, CalibrationRecord
from stategate.contract.calibration import CurvePoint, GateCalibration, Interval
from stategate.contract.errors import ResultError
from stategate.export.bill.about import About

ABOUT = Path(__file__).parents[2] / "docs/examples/about.json"
AI = "https://spdx.org/rdf/3.0.1/terms/ExpandedLicensing/NoAssertionLicense"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bill")
    (folder / "model.py").write_text(MODEL)
    place = f"{folder / 'model.py'}:Latch"
    sha256 = stategate.make(place, folder / "first", steps=4).manifest.model.sha256
    point = CurvePoint(0.25, 0.4, 0.4, 0.9, accuracy_interval=Interval(0.85, 0.95))
    gate = GateCalibration("large", 0.25, 0.4, "the most accurate", (point,))
    record = CalibrationRecord(sha256, "walks", 900, (gate,))
    return stategate.make(place, folder / "bundle", steps=40, calibration=record)


def cyclonedx(bundle: Bundle, about: Path | About | None = None) -> dict:
    return json.loads(stategate.bill(bundle, format="cyclonedx", about=about))


def spdx(bundle: Bundle, about: Path | None = None) -> dict[str, list[dict]]:
    document = json.loads(stategate.bill(bundle, format="spdx", about=about))
    kinds: dict[str, list[dict]] = {}
    for element in document["@graph"]:
        kinds.setdefault(element["type"], []).append(element)
    return kinds


@pytest.mark.slow
@pytest.mark.parametrize("about", [None, ABOUT], ids=["nothing declared", "all declared"])
def test_the_published_schemas_accept_a_bill(bundle: Bundle, about: Path | None) -> None:
    raw = stategate.bill(bundle, about=about).decode()
    assert not JsonStrictValidator(SchemaVersion.V1_7).validate_str(raw, all_errors=True)
    document = json.loads(stategate.bill(bundle, format="spdx", about=about))
    _, read = spdx_python_model.load_data(document)
    assert not read.missing_ids
    assert "ai_AIPackage" in stategate.bill(bundle, format="spdx").decode()


def test_the_guide_shows_the_declaration_that_is_tested() -> None:
    guide = ABOUT.parents[1] / "guides/carry.md"
    assert f"```json\n{ABOUT.read_text()}```" in guide.read_text()


def test_every_file_is_named_with_its_digest(bundle: Bundle) -> None:
    listed = {"manifest.json": bundle.digest}
    listed |= {file.path: file.sha256 for file in bundle.manifest.all_files}
    files = [c for c in cyclonedx(bundle)["components"] if c["type"] == "file"]
    assert {f["name"]: f["hashes"][0]["content"] for f in files} == listed
    files = spdx(bundle)["software_File"]
    assert {f["name"]: f["verifiedUsing"][0]["hashValue"] for f in files} == listed


def test_metrics_carry_their_interval_and_limits_come_from_the_receipts(bundle: Bundle) -> None:
    card = cyclonedx(bundle, ABOUT)["components"][0]["modelCard"]
    metrics = {m["type"]: m for m in card["quantitativeAnalysis"]["performanceMetrics"]}
    receipt = bundle.manifest.verification
    assert receipt is not None
    assert metrics["max_output_error"]["value"] == repr(receipt.max_output_error)
    interval = {"lowerBound": "0.85", "upperBound": "0.95"}
    assert metrics["accuracy with large"]["confidenceInterval"] == interval
    limits = card["considerations"]["technicalLimitations"]
    assert "noise says nothing about real inputs" in limits and "not trained on stairs" in limits
    (package,) = spdx(bundle)["ai_AIPackage"]
    entries = {entry["key"]: entry["value"] for entry in package["ai_metric"]}
    assert entries["accuracy with large"].startswith("0.9 (95 %: 0.85 to 0.95), calibration over")
    assert package["ai_metricDecisionThreshold"][0]["value"] == "0.25"


def test_what_nobody_said_is_not_asserted(bundle: Bundle) -> None:
    model = cyclonedx(bundle)["components"][0]
    assert model["licenses"] == [{"expression": "NOASSERTION"}]
    assert model["supplier"] == {"name": "NOASSERTION"}
    assert "externalReferences" not in model and "description" not in model
    kinds = spdx(bundle)
    (package,) = kinds["ai_AIPackage"]
    assert package["ai_autonomyType"] == package["ai_useSensitivePersonalInformation"]
    assert package["ai_autonomyType"] == "noAssertion"
    assert package["software_downloadLocation"] == "NOASSERTION"
    assert "ai_safetyRiskAssessment" not in package and "ai_energyConsumption" not in package
    for relation in ("hasDeclaredLicense", "hasConcludedLicense"):
        ends = [
            r["to"]
            for r in kinds["Relationship"]
            if r["relationshipType"] == relation and r["from"] == package["spdxId"]
        ]
        assert ends == [[AI]]


def test_a_tools_licence_is_said_only_of_the_version_that_is_here(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def licences() -> dict[str, str]:
        parts = cyclonedx(bundle)["components"]
        return {p["name"]: p["licenses"][0]["expression"] for p in parts if p["type"] == "library"}

    declared = importlib.metadata.metadata("onnx").get("License-Expression")
    assert licences()["onnx"] == declared == "Apache-2.0"
    other = importlib.metadata.metadata("onnx")
    other.replace_header("Version", "0.0.1")
    monkeypatch.setattr("stategate.export.bill.facts.metadata", lambda _: other)
    assert licences()["onnx"] == "NOASSERTION"


def test_a_bill_is_the_same_for_a_bundle_at_another_path(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "elsewhere")
    for form in ("cyclonedx", "spdx"):
        one = stategate.bill(bundle, format=form, about=ABOUT)
        assert one == stategate.bill(tmp_path / "elsewhere", format=form, about=ABOUT)
        assert str(bundle.path).encode() not in one
    assert cyclonedx(bundle)["serialNumber"] != cyclonedx(bundle, ABOUT)["serialNumber"]


@pytest.mark.parametrize(
    ("options", "declaration", "message"),
    [
        (["--licence", "Apache 2"], None, "SPDX expression"),
        ([], '{"licens": "MIT"}', "licens"),
        ([], '{"homepage": "example.org"}', "homepage"),
        ([], '{"energy_kwh": {"training": -1}}', "training"),
        ([], '{"datasets": [{"name": "a", "licence": "see README"}]}', "SPDX expression"),
        ([], '{"description": "\\u001b[2J"}', "control character"),
        (["--format", "pdf"], None, "pdf"),
    ],
)
def test_a_bill_with_a_wrong_declaration_is_refused(
    options: list[str], declaration: str | None, message: str, bundle: Bundle, tmp_path: Path
) -> None:
    if declaration is not None:
        (tmp_path / "about.json").write_text(declaration)
        options = ["--about", str(tmp_path / "about.json")]
    out = tmp_path / "bill.json"
    done = CliRunner().invoke(main, ["bill", str(bundle.path), "--out", str(out), *options])
    assert done.exit_code == 2 and message in done.output and not out.exists()


def test_the_verb_names_what_nobody_said(bundle: Bundle, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "a.json"), "--licence", "MIT", "--json"]
    done = CliRunner().invoke(main, ["bill", str(bundle.path), *options])
    unsaid = json.loads(done.output)["unsaid"]
    assert "supplier" in unsaid and "licence" not in unsaid


def test_no_result_is_written_into_a_bundle(bundle: Bundle) -> None:
    for place in (bundle.path / "manifest.json", bundle.path / "new" / "bill.json"):
        with pytest.raises(ResultError, match="into a bundle"):
            stategate.bill(bundle, place)
        for line in (["bill", str(bundle.path)], ["model", "sensitivity", "gru"]):
            assert "into a bundle" in CliRunner().invoke(main, [*line, "--out", str(place)]).output
    assert Bundle.open(bundle.path).undeclared_files() == []


@pytest.mark.slow
@pytest.mark.skipif(not SCORER.exists(), reason="make sbom fetches OWASP's measure")
def test_a_declared_bundle_is_complete_by_owasps_measure(bundle: Bundle) -> None:
    declared, bare = cyclonedx(bundle, ABOUT), cyclonedx(bundle)
    assert completeness(declared)["score"] >= 95
    # What is not asserted counts as missing here, although the measure itself takes it.
    assert completeness(bare)["score"] < completeness(bare)["score_with_noassertion"]
