"""A candidate in lower precision becomes a bundle by its drift report, or by somebody's word."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stategate.calibration.drift.loop import drift as compare
from stategate.calibration.ranges.record import Roller
from stategate.calibration.thresholds.recalibrate import recalibrate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode, FileRef, Manifest, write_bundle
from stategate.contract.errors import CalibrationError, SpecError
from stategate.contract.manifest import DriftReceipt
from stategate.runtime import Session


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one's own, its float bundle, two candidates and a held-out recording."""
    folder = tmp_path_factory.mktemp("seal")
    source = Path(__file__).parents[1] / "conftest.py"
    (folder / "mine.py").write_text(source.read_text())
    rng = np.random.default_rng(8)
    x = rng.standard_normal((400, 1, 4)).astype(np.float32)
    (folder / "held-out.npz").write_bytes(Episode({"x": x}).to_bytes())
    for name, more in {
        "float": [],
        "small": ["--state-storage", "h=int8", "--error-feedback"],
        "int4": ["--precision", "int4-weights"],
    }.items():
        plan = folder / "all.json"
        plan.write_text('{"weights": "float16", "keep_float": []}')
        more = [str(plan) if word == "int4-weights" else word for word in more]
        done = run("export", f"{folder}/mine.py:Tiny", "--steps", 50, *more, "--out", folder / name)
        assert done.exit_code == 0, done.output
        assert ("a candidate, to be judged" in done.output) == (name != "float")
    return folder


def drift(built: Path, name: str, out: Path, *more: object) -> Result:
    held_out = built / "held-out.npz"
    common = ["drift", built / "float", built / name, "--episode", held_out, "--out", out]
    return run(*common, *more)


def manifest(path: Path) -> Manifest:
    return Bundle.open(path).manifest


@pytest.mark.parametrize("folder", ["float", "small", "small/report"])
def test_a_report_is_not_written_into_a_bundle(built: Path, folder: str) -> None:
    done = drift(built, "small", built / folder)
    assert done.exit_code == 2 and re.search("outside of the bundles|into a bundle", done.output)


def test_a_candidate_that_keeps_its_limits_is_sealed_with_its_report(
    built: Path, tmp_path: Path
) -> None:
    assert run("verify", built / "small").exit_code == 1
    done = drift(built, "small", tmp_path / "report", "--seal", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    sealed, candidate = manifest(tmp_path / "bundle"), manifest(built / "small")
    assert (candidate.standing, sealed.standing) == ("candidate", "sealed")
    receipt = sealed.drift
    assert receipt is not None and receipt.steps == 400
    assert (receipt.findings, receipt.accepted) == ((), None)
    assert receipt.reference == Bundle.open(built / "float").digest
    report = Bundle.open(tmp_path / "bundle").read(receipt.report)
    assert report == (tmp_path / "report" / "drift.json").read_bytes()
    assert run("verify", tmp_path / "bundle").exit_code == 0
    assert "drift        400 steps" in run("inspect", tmp_path / "bundle").output
    with Session.open(built / "small") as ours, Session.open(tmp_path / "bundle") as theirs:
        for inputs in Episode.load(built / "held-out.npz"):
            assert np.array_equal(ours.step(**inputs)["y"], theirs.step(**inputs)["y"])


def test_a_candidate_beyond_its_limits_is_sealed_by_nobody_or_by_name(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    strict = ["--max-mean-error", "1e-9", "--seal", out]
    done = drift(built, "int4", tmp_path / "report", *strict)
    assert done.exit_code == 1 and "not sealed" in done.output
    assert list(tmp_path.iterdir()) == [tmp_path / "report"]  # nothing is left half built
    assert json.loads((tmp_path / "report" / "drift.json").read_text())["findings"]
    done = drift(built, "int4", tmp_path / "report", *strict, "--accept", "Ada: a toy")
    assert done.exit_code == 0 and "accepted by Ada: a toy" in done.output
    receipt = manifest(out).drift
    assert receipt is not None and receipt.accepted == "Ada: a toy"
    assert receipt.findings[0].startswith("mean output error")
    assert run("verify", out).exit_code == 1
    assert run("verify", out, "--allow-refused").exit_code == 0
    assert "accepted by Ada" in run("inspect", out).output


def test_a_candidate_that_was_accepted_without_need_says_nobody(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = drift(built, "small", tmp_path / "r", "--seal", out, "--accept", "Ada: in case")
    assert done.exit_code == 0, done.output
    receipt = manifest(out).drift
    assert receipt is not None and receipt.accepted is None


def test_what_cannot_be_sealed_is_refused_before_it_is_stepped(
    built: Path, aura_bundle: Path, tmp_path: Path
) -> None:
    common = ["--episode", built / "held-out.npz", "--out", tmp_path / "report"]
    seal = ["--seal", tmp_path / "bundle"]
    done = run("drift", aura_bundle, built / "small", *common, *seal)
    assert done.exit_code == 1 and "not made from the float bundle" in done.output
    done = run("drift", built / "small", built / "int4", *common, *seal)
    assert done.exit_code == 1 and "judged by the sealed float model" in done.output
    done = run("drift", built / "float", built / "small", *common, "--accept", "Ada: why not")
    assert done.exit_code == 2 and "--seal" in done.output
    done = run("drift", built / "float", built / "small", *common, *seal, "--accept", "because")
    assert done.exit_code == 2 and "WHO: WHY" in done.output
    for place in (built / "float", tmp_path, tmp_path / "report"):
        done = run("drift", built / "float", built / "small", *common, "--seal", place)
        assert done.exit_code == 2 and "a folder apart" in done.output
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    done = run("drift", built / "float", built / "small", *common, *seal)
    assert done.exit_code != 0 and "not a bundle" in done.output
    assert not (tmp_path / "report").exists()


@pytest.mark.case("D3")
@pytest.mark.parametrize("verb", ["drift", "recalibrate"])
def test_two_bundles_in_the_wrong_order_are_refused_with_the_command_that_works(
    built: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / ("out" if verb == "drift" else "out.json")
    options = ["--episode", built / "held-out.npz", "--out", out, "--json"]
    done = run(verb, built / "small", built / "float", *options)
    assert done.exit_code == 1 and "the wrong way round" in done.output and not out.exists()
    command = done.output.partition("what to do: stategate ")[2].strip()
    assert command.startswith(f"{verb} {built / 'float'} {built / 'small'} ")
    assert run(*shlex.split(command)).exit_code == 0 and out.exists()


@pytest.mark.case("D3")
def test_what_was_accepted_beyond_its_limits_or_is_smaller_judges_nobody(
    built: Path, tmp_path: Path
) -> None:
    episodes = [("e", Episode.load(built / "held-out.npz"))]
    with pytest.raises(CalibrationError, match="judged by the sealed float model\n"):
        compare(built / "small", built / "int4", episodes, 10)
    with pytest.raises(CalibrationError, match="judged by the sealed float model, which comes"):
        recalibrate(built / "small", built / "float", [episodes[0][1]])
    sealed = Bundle.open(built / "float")
    receipt = sealed.manifest.verification
    assert receipt is not None
    beyond = msgspec.structs.replace(receipt, accepted="Ada: a toy (overruled: error 1.1)")
    taken = msgspec.structs.replace(sealed.manifest, verification=beyond)
    files = {f.path: sealed.read(f) for f in taken.all_files}
    refused = write_bundle(tmp_path / "refused", taken, files)
    with pytest.raises(CalibrationError, match="float32, refused"):
        compare(refused.path, built / "small", episodes, 10)
    with pytest.raises(CalibrationError, match="float32, refused"):
        Roller(refused)


def test_a_receipt_says_who_overruled_what(built: Path) -> None:
    ref = FileRef("drift.json", "0" * 64)
    with pytest.raises(SpecError, match="nobody"):
        DriftReceipt(ref, "", 1, ("a limit was broken",))
    with pytest.raises(SpecError, match="Ada"):
        DriftReceipt(ref, "", 1, (), "Ada: a toy")


@pytest.mark.slow
def test_nobody_can_accept_a_candidate_that_fails(built: Path, tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(
        (built / "mine.py").read_text().replace('states["count"] + 1.0', 'states["count"] + 9e3')
    )
    model = f"{tmp_path}/large.py:Tiny"
    for name, more in {"float": [], "half": ["--state-storage", "count=float16"]}.items():
        done = run("export", model, "--steps", 5, *more, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    held_out = Episode({"x": np.ones((30, 1, 4), np.float32)})
    (tmp_path / "e.npz").write_bytes(held_out.to_bytes())
    done = run(
        "drift", tmp_path / "float", tmp_path / "half", "--episode", tmp_path / "e.npz",
        "--out", tmp_path / "r", "--seal", tmp_path / "sealed", "--accept", "Ada: a toy",
    )  # fmt: skip
    assert done.exit_code == 1 and "fails in step" in done.output
    assert not (tmp_path / "sealed").exists()
