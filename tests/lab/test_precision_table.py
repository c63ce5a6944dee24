"""The table of plans, from the files of which it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from lab.__main__ import main as lab
from lab.pace import measure_pace
from lab.precision_table import BEGIN, END, Row, on_page, rows_of, table
from stategate.calibration.drift.loop import drift
from stategate.calibration.drift.record import DriftReport
from stategate.contract import Episode, canonical_json
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.inputs import random_episode
from stategate.export.passes.state_precision import stored
from stategate.export.seal.pack import seal
from stategate.export.seal.verify import Limits
from stategate.models.load import LoadedModel

DOCS = Path(__file__).parents[2] / "docs"
Copy = Callable[[], Path]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    """A folder of one model with three plans: one good, one refused, one that drifts."""
    folder = tmp_path_factory.mktemp("plans")
    rng = np.random.default_rng(9)
    x = rng.standard_normal((500, 1, 4)).astype(np.float32)
    held_out = Episode({"x": x}, {"y": rng.integers(-1, 4, 500)})
    paths = []
    for plan, kind in (("float32", None), ("state-float16", "float16"), ("state-int8", "int8")):
        model = tiny_model()
        loaded = LoadedModel("m", "custom", "tests", model, model, None)
        candidate = candidate_from(loaded)
        reference = reference_for(model, candidate)
        candidate = stored(candidate, {"h": kind}, False) if kind else candidate
        episode = random_episode(candidate.spec, 20)
        out = folder / "tiny" / plan / "bundle"
        out.parent.mkdir(parents=True)
        paths.append(seal(out, candidate, reference, episode, limits=Limits(1e9, 1.0)).path)
        if kind:
            report = drift(paths[0], out, [("e", held_out)], 10_000, repeat=True)
            (out.parent / "drift.json").write_bytes(canonical_json(report))
    pace = [asdict(one) for one in measure_pace(paths, rounds=1, burst=5)]
    (folder / "tiny" / "pace.json").write_text(json.dumps(pace))
    refused = folder / "tiny" / "weights-int4" / "refused.txt"
    refused.parent.mkdir()
    (folder / "tiny" / "episode").mkdir()
    refused.write_text("verifying\nExportError: the plan quantises nothing\n  found: 0 weights\n")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; bundles are the originals."""
    for path in original.glob("tiny/*"):
        copied = tmp_path / "plans" / "tiny" / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            copied.write_bytes(path.read_bytes())
            continue
        copied.mkdir()
        for file in path.iterdir():
            if file.is_dir():
                (copied / file.name).symlink_to(file)
            else:
                (copied / file.name).write_bytes(file.read_bytes())
    return tmp_path / "plans"


@pytest.mark.slow
def test_every_plan_has_a_row_and_its_figures_are_those_of_its_files(original: Path) -> None:
    reference, float16, int8, refused = rows_of(original)
    assert [r.plan for r in (reference, float16, int8, refused)] == [
        "float32",
        "state-float16",
        "state-int8",
        "weights-int4",
    ]
    report = msgspec.json.decode(
        (original / "tiny" / "state-int8" / "drift.json").read_bytes(), type=DriftReport
    )
    assert int8.error_at_10000 == report.milestones[-1].output_error_mean > 0
    assert int8.flip_rate == report.total.flips / report.total.decisions
    assert int8.task_metric == report.total.right[1] / report.total.judged
    assert reference.task_metric == report.total.right[0] / report.total.judged
    assert int8.reason == "; ".join(report.findings)
    assert (reference.state_bytes, float16.state_bytes) == (4 * 4 + 4, 2 * 4 + 4)
    assert reference.p50_ratio == 1.0 and reference.verdict == "reference"
    assert (refused.verdict, refused.bytes) == ("refused", None)
    assert refused.reason == "the plan quantises nothing; found: 0 weights"


def test_the_command_writes_a_list_and_a_page_and_the_same_ones_again(
    original: Path, tmp_path: Path
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "p.json"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    command = ["precision-table", str(original), "--out", str(out), "--page", str(page), "--json"]
    written = []
    for _ in range(2):
        done = CliRunner().invoke(lab, command)
        assert done.exit_code == 0, done.output
        written.append((page.read_text(), out.read_text()))
    assert written[0] == written[1]
    assert page.read_text().startswith("# Before\n") and page.read_text().endswith("\nAfter\n")
    assert "old" not in page.read_text() and "**weights-int4**, refused" in page.read_text()
    rows = json.loads(out.read_text())
    assert rows == json.loads(done.stdout)
    keys = {"model", "plan", "bytes", "error_at_10000", "flip_rate", "task_metric"}
    assert all(keys <= set(row) for row in rows)


def test_the_documented_table_is_that_of_the_recorded_rows() -> None:
    rows = msgspec.json.decode((DOCS / "evidence" / "precision.json").read_bytes(), type=list[Row])
    page = (DOCS / "guides" / "precision.md").read_text()
    assert on_page(page, rows) == page
    assert {row.model for row in rows} == {"aura-hard", "gdn2-hard", "gru-few", "silero-vad"}
    for row in rows:
        assert (
            row.reason if row.verdict in ("refused", "failed") else row.error_at_10000 is not None
        )


def test_the_recorded_rows_show_int8_failing_and_error_feedback_mending_it() -> None:
    rows = msgspec.json.decode((DOCS / "evidence" / "precision.json").read_bytes(), type=list[Row])
    silero = {row.plan: row for row in rows if row.model == "silero-vad"}
    naive, mended = silero["state-int8-tensor"], silero["state-int8-tensor-fed-back"]
    assert naive.verdict == "failed" and mended.verdict == "passed"
    assert naive.error_at_10000 and mended.error_at_10000
    assert naive.error_at_10000 > 50 * mended.error_at_10000


def test_a_candidate_that_stopped_says_where(folder: Path) -> None:
    path = folder / "tiny" / "state-int8" / "drift.json"
    report = msgspec.json.decode(path.read_bytes(), type=DriftReport)
    early = msgspec.structs.replace(report.total, step=7, steps=7)
    stopped = msgspec.structs.replace(
        report, fault="NaN", findings=("NaN",), total=early, milestones=report.milestones[:1]
    )
    path.write_bytes(canonical_json(stopped))
    row = next(row for row in rows_of(folder) if row.plan == "state-int8")
    assert (row.halted_at, row.error_at_10000, row.verdict) == (7, None, "failed")


@pytest.mark.parametrize(
    ("file", "raw", "finding"),
    [
        ("state-int8/drift.json", b"{", "cannot be read"),
        ("state-int8/drift.json", None, "cannot be read"),
        ("pace.json", b"[]", "does not have this bundle"),
        ("pace.json", b'[{"bundle": 3}]', "cannot be read"),
        ("weights-int4/refused.txt", b"", "gives no reason"),
        (
            "weights-int4/refused.txt",
            b"Traceback (most recent call last):\nValueError: x\n",
            "no refusal",
        ),
        ("weights-int4/refused.txt", b"\xff\xfe Killed", "gives no reason"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    folder: Path, file: str, raw: bytes | None, finding: str
) -> None:
    path = folder / "tiny" / file
    path.unlink() if raw is None else path.write_bytes(raw)
    with pytest.raises(CalibrationError, match=finding) as refusal:
        rows_of(folder)
    assert str(path) in str(refusal.value)


def test_a_drift_report_of_another_bundle_is_refused(folder: Path) -> None:
    plans = folder / "tiny"
    other = (plans / "state-float16" / "drift.json").read_bytes()
    (plans / "state-int8" / "drift.json").write_bytes(other)
    with pytest.raises(CalibrationError, match="is of another bundle"):
        rows_of(folder)


def test_a_short_drift_report_is_refused(folder: Path) -> None:
    path = folder / "tiny" / "state-int8" / "drift.json"
    report = msgspec.json.decode(path.read_bytes(), type=DriftReport)
    short = msgspec.structs.replace(report, milestones=report.milestones[:3])
    path.write_bytes(canonical_json(short))
    with pytest.raises(CalibrationError, match="too short"):
        rows_of(folder)


def test_a_model_of_which_no_plan_was_measured_is_refused(folder: Path) -> None:
    for plan in ("state-int8", "state-float16"):
        (folder / "tiny" / plan / "refused.txt").write_text("SpecError: no\n")
    with pytest.raises(CalibrationError, match="no plan of tiny was measured"):
        rows_of(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="nothing to collect"):
        rows_of(tmp_path)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", END])
def test_a_page_without_a_place_for_the_table_is_refused(page: str) -> None:
    with pytest.raises(CalibrationError, match="no place"):
        on_page(page, [])


def test_a_table_says_what_it_does_not_know_with_a_dash() -> None:
    row = Row(model="m", plan="p", verdict="refused", reason="why")
    assert "| p | – | – | – | – | – | – | – | – | refused |" in table([row])


def test_paces_are_of_one_run_and_the_first_is_the_measure(original: Path, tmp_path: Path) -> None:
    plans = [original / "tiny" / plan / "bundle" for plan in ("float32", "state-int8")]
    out = tmp_path / "pace.json"
    command = ["pace", *map(str, plans), "--rounds", "2", "--burst", "3", "--out", str(out)]
    done = CliRunner().invoke(lab, command)
    assert done.exit_code == 0, done.output
    first, second = json.loads(out.read_text())
    assert first["ratio"] == 1.0 and first["p50_us"] > 0
    assert second["ratio"] == pytest.approx(second["p50_us"] / first["p50_us"])
    assert first["bundle"] == str(plans[0]) and first["digest"] != second["digest"]


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["--rounds", "0"], ["--burst", "x"]])
def test_pace_refuses_what_it_cannot_time(arguments: list[str]) -> None:
    assert CliRunner().invoke(lab, ["pace", *arguments]).exit_code == 2


def test_a_bundle_without_golden_inputs_has_no_pace(original: Path, monkeypatch) -> None:
    monkeypatch.setattr("stategate.contract.Bundle.golden", lambda self: None)
    with pytest.raises(EpisodeError, match="no golden episode"):
        measure_pace([original / "tiny" / "float32" / "bundle"], 1, 1)
