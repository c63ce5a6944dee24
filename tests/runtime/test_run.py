from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session
from stategate.runtime.check.gaps import Gaps
from stategate.runtime.check.golden import replay
from stategate.runtime.episodes.run import run_episode


def episode(steps: int) -> Episode:
    """Gate open in every fourth step; after it y[0] is positive by construction of the label."""
    x = np.tile(np.array([-1.0, 0.2, 0.1, 0.3], np.float32), (steps, 1, 1))
    x[::4, 0, 0] = 1.0
    return Episode({"x": x}, {"y": np.full(steps, -1)})


def test_a_run_counts_what_the_gate_does(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        result = run_episode(session, episode(400))
    assert (result.ledger.steps, result.ledger.writes) == (400, 100)
    assert result.write_ratio == 4.0
    assert result.state_bytes == 20
    assert result.timeline.step[-1] == 400 and result.timeline.writes[-1] == 100
    assert result.accuracy is None
    assert 0 < result.p50_us <= result.p99_us
    assert result.rss_start_bytes > 0 and result.rss_end_bytes > 0


def test_accuracy_is_the_share_of_labelled_answers(tiny_bundle: Path) -> None:
    plain = episode(60)
    with Session.open(tiny_bundle) as session:
        answers = np.array([session.step(**x)["y"].argmax() for x in plain])
    labels = np.where(np.arange(60) % 3 == 0, answers, -1)
    labels[[0, 3, 6, 9, 12]] = (answers[[0, 3, 6, 9, 12]] + 1) % 4
    with Session.open(tiny_bundle) as session:
        result = run_episode(session, Episode(plain.inputs, {"y": labels}))
    assert (result.judged_steps, result.accuracy) == (20, 15 / 20)


def test_a_short_episode_goes_round_with_its_labels(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:
        result = run_episode(session, episode(8), steps=100)
    assert result.ledger.steps == 100


def test_a_run_of_nothing_is_refused(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session, pytest.raises(EpisodeError, match="0 steps"):
        run_episode(session, episode(8), steps=0)


def test_replaying_the_golden_episode_agrees(tiny_bundle: Path) -> None:
    result = replay(tiny_bundle)
    assert result is not None and result.passed and result.gate_flips == 0
    strict = replay(tiny_bundle, tolerance=-1.0)
    assert strict is not None and not strict.passed


def worst(ours: object, theirs: object, dtype: str = "float32") -> float:
    gaps = Gaps()
    gaps.add({"y": np.array(ours, dtype)}, {"y": np.array(theirs, dtype)})
    return gaps.worst()


def test_a_gap_is_measured_in_units_of_what_the_reference_reached() -> None:
    assert worst([200.0, 0.0], [100.0, 0.0]) == 1.0
    assert worst([1e-5], [-1e-5]) == pytest.approx(2.0)  # small numbers are judged as sharply
    gaps = Gaps()
    for ours, theirs in ((0.5, 0.25), (1.0, 1.0)):
        gaps.add({"y": np.array([ours])}, {"y": np.array([theirs])})
    assert gaps.per_step().tolist() == [0.25, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_agrees_only_with_its_like(value: float) -> None:
    assert worst([value, 1.0], [value, 1.0]) == 0.0
    assert worst([value], [1.0]) == worst([1.0], [value]) == float("inf")


def test_integers_agree_or_differ_without_measure() -> None:
    assert worst([2**53 + 1], [2**53], "int64") == float("inf")
    assert worst([True], [True], "bool") == 0.0
    assert worst([1.0, 2.0], [1.0]) == float("inf")


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_run_leaves_a_ledger_with_every_promised_key(tiny_bundle: Path, tmp_path: Path) -> None:
    invoke("run", tiny_bundle, "--steps", 300, "--out", tmp_path)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    promised = {
        "steps", "writes", "quiet_steps", "suppressed_writes", "state_bytes", "write_ratio",
        "accuracy", "p50_us", "p99_us", "rss_start_bytes", "rss_end_bytes",
    }  # fmt: skip
    assert promised <= set(ledger)
    assert ledger["steps"] == 300 == ledger["writes"] + ledger["quiet_steps"]
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


def test_run_prints_json_that_parses(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(main, ["run", str(tiny_bundle), "--steps", "10", "--json"])
    assert json.loads(result.stdout)["steps"] == 10


def test_inspect_prints_the_manifest(tiny_bundle: Path) -> None:
    shown = json.loads(invoke("inspect", tiny_bundle, "--json"))
    assert shown["ledger"] is None
    assert shown["states"][0]["bytes"] == 16
    assert "20 bytes, constant" in invoke("inspect", tiny_bundle)


def test_verify_says_yes_with_0_and_no_with_1(tiny_bundle: Path, copy_of, tmp_path: Path) -> None:
    assert json.loads(invoke("verify", tiny_bundle, "--json"))["passed"] is True
    copy = copy_of(tiny_bundle)
    (copy / "stray.bin").write_bytes(b"?")
    assert json.loads(invoke("verify", copy, "--json", code=1))["undeclared_files"] == ["stray.bin"]
    graph = copy / "graphs" / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "DigestError" in invoke("verify", "--digests", copy, code=1)


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        assert "ResultError" in invoke("run", tiny_bundle, "--out", out, code=2)
        assert "ResultError" in invoke("bench", tiny_bundle, "--out", out, code=2)
        assert "ResultError" in invoke("episode", "aura-hard", "--out", out / "e", code=2)
        assert "ResultError" in invoke("export", "aura-hard", "--out", out, code=2)


@pytest.mark.parametrize("words", [("run",), ("fleet", "collect"), ("bench",)], ids=" ".join)
def test_no_result_is_put_into_the_folder_of_a_bundle(
    words: tuple[str, ...], tiny_bundle: Path
) -> None:
    before = sorted(tiny_bundle.rglob("*"))
    assert "ResultError" in invoke(*words, tiny_bundle, "--out", tiny_bundle, code=2)
    assert sorted(tiny_bundle.rglob("*")) == before


def test_a_golden_episode_without_answers_never_passes(tiny_bundle: Path, tmp_path: Path) -> None:
    import msgspec

    from stategate.contract import FileRef, sha256, write_bundle

    bundle = Bundle.open(tiny_bundle)
    golden = bundle.golden()
    assert golden is not None
    graph = bundle.manifest.graphs[0].file
    hollow = [
        Episode(golden.inputs),
        Episode(golden.inputs, {}, {}, golden.gates, golden.states),
        Episode(golden.inputs, {}, {"y": golden.outputs["y"][:3]}, golden.gates, golden.states),
    ]
    for i, episode in enumerate(hollow):
        raw = episode.to_bytes()
        manifest = msgspec.structs.replace(
            bundle.manifest, files=(FileRef("golden.npz", sha256(raw)),)
        )
        files = {graph.path: bundle.read(graph), "golden.npz": raw}
        path = write_bundle(tmp_path / str(i), manifest, files).path
        assert "EpisodeError" in invoke("verify", path, code=2)


def test_wrong_use_exits_with_2(tiny_bundle: Path, tmp_path: Path) -> None:
    invoke("run", tmp_path / "nowhere", code=2)
    invoke("run", tiny_bundle, "--episode", tmp_path / "none.npz", code=2)
    invoke("run", tiny_bundle, "--steps", 0, code=2)
    invoke("no-such-verb", code=2)


def test_a_bundle_without_golden_episode_is_distinguished(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    import msgspec

    from stategate.contract import write_bundle

    bundle = Bundle.open(tiny_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, golden=None, files=())
    graph = bundle.manifest.graphs[0].file
    plain = write_bundle(tmp_path / "b", manifest, {graph.path: bundle.read(graph)}).path
    assert "not checked" in invoke("verify", plain, code=1)
    assert "passed" in invoke("verify", plain, "--digests")
    assert "give one with --episode" in invoke("run", plain, code=2)


def test_a_run_goes_on_from_its_snapshots_and_inspect_shows_the_ledger(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    for expected in (30, 60):
        shown = invoke("run", tiny_bundle, "--steps", 30, "--snapshots", folder, "--json")
        assert json.loads(shown[shown.index("{") :])["steps"] == expected
    ledger = json.loads(invoke("inspect", tiny_bundle, "--snapshots", folder, "--json"))["ledger"]
    assert (ledger["steps"], ledger["snapshots"], ledger["restores"]) == (60, 2, 1)
    assert "ledger       steps 60" in invoke("inspect", tiny_bundle, "--snapshots", folder)
    with Session.open(tiny_bundle, snapshots=folder):
        invoke("inspect", tiny_bundle, "--snapshots", folder)
