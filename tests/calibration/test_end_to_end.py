"""A policy of one's own in int8: each step a command and a file, from recording to seal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle, CalibrationRecord, Episode
from stategate.runtime import Session

POLICY = """
import torch
from torch import nn
from stategate.models.memories.recurrent.cell import RecurrentStep

def policy():
    torch.manual_seed(4)
    return RecurrentStep(nn.GRU(6, 16), nn.Linear(16, 3), write_threshold=0.0)
"""


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "my.py").write_text(POLICY)
    (tmp_path / "plan.json").write_text('{"weights": "int8", "keep_float": []}')
    rng = np.random.default_rng(2)
    for folder, steps in (("logs", 260), ("held-out", 300)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            x = np.cumsum(rng.standard_normal((steps, 1, 6)) / 4, axis=0)
            x = (x - x.mean(0)).astype(np.float32)
            (tmp_path / folder / f"{i}.npz").write_bytes(Episode({"x": x}).to_bytes())
    return tmp_path


@pytest.mark.slow
def test_a_gru_policy_in_int8_is_calibrated_recalibrated_judged_and_sealed(work: Path) -> None:
    model, logs, held_out = f"{work}/my.py:policy", work / "logs", work / "held-out"
    run("calibrate", model, "--episode", logs, "--write-rate", 0.4, "--out", work / "gate.json")
    export = ["export", model, "--episode", logs, "--steps", 200]
    run(*export, "--calibration", work / "gate.json", "--out", work / "float")
    small = [*export, "--precision", work / "plan.json"]
    run(*small, "--calibration", work / "gate.json", "--out", work / "first")
    run("recalibrate", work / "float", work / "first", "--episode", logs,
        "--out", work / "int8.json")  # fmt: skip
    record = CalibrationRecord.load(work / "int8.json")
    run(*small, "--calibration", work / "int8.json", "--out", work / "candidate")
    candidate = Bundle.open(work / "candidate").manifest
    assert candidate.gates[0].threshold == record.gates[0].threshold
    assert candidate.calibration is not None and candidate.standing == "candidate"
    assert candidate.step_graph.precision == "int8-weights (own plan)"
    report = ["drift", work / "float", work / "candidate", "--episode", held_out,
              "--out", work / "drift", "--seal", work / "bundle"]  # fmt: skip
    wide = ["--max-flip-rate", 0.05, "--max-mean-error", 0.05, "--max-write-change", 0.05]
    run(*report, *wide)
    assert "passed" in run("verify", work / "bundle")
    told = json.loads((work / "drift" / "drift.json").read_text())
    assert 0 < told["total"]["output_error"] < 0.5
    with Session.open(work / "bundle") as session:
        for inputs in Episode.load(held_out / "0.npz"):
            session.step(**inputs)
        assert session.ledger.writes > 0
    float_size, small_size = (
        (work / name / "graphs" / "step.onnx").stat().st_size for name in ("float", "bundle")
    )
    assert small_size < float_size


@pytest.mark.slow
def test_a_record_for_other_weights_is_refused(work: Path) -> None:
    model = f"{work}/my.py:policy"
    run("calibrate", model, "--episode", work / "logs", "--write-rate", 0.4,
        "--out", work / "gate.json")  # fmt: skip
    (work / "my.py").write_text(POLICY.replace("manual_seed(4)", "manual_seed(5)"))
    told = run("export", model, "--calibration", work / "gate.json", "--out", work / "b", code=1)
    assert "the calibration record is for another model" in told
    assert not (work / "b").exists()


COMMANDS = {
    "calibrate": ["calibrate", "my.py:policy", "--write-rate", "0.3", "--out", "out"],
    "ranges": ["ranges", "float", "--out", "out"],
    "recalibrate": ["recalibrate", "float", "float", "--out", "out"],
    "drift": ["drift", "float", "float", "--out", "out"],
}


@pytest.mark.slow
def test_recordings_that_say_nothing_are_refused_by_every_command(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    run("export", "my.py:policy", "--steps", 20, "--out", "float")
    x = np.random.default_rng(3).standard_normal((120, 1, 6)).astype(np.float32)
    holes = x.copy()
    holes[77, 0, 2] = np.nan
    for path, recorded in {
        "empty/a.npz": x[:0],
        "mixed/a.npz": x,
        "mixed/b.npz": x[:, :, :5],
        "narrow/a.npz": x[:, :, :5],
        "holes/a.npz": holes,
        "flat/a.npz": np.full_like(x, 0.25),
    }.items():
        (work / path).parent.mkdir(exist_ok=True)
        (work / path).write_bytes(Episode({"x": recorded}).to_bytes())
    (work / "none").mkdir()
    for folder, finding in {
        "empty": "is empty",
        "mixed": "not of one form",
        "narrow": "does not fit the model",
        "holes": "the first of them step 77",
        "none": "holds no episodes",
    }.items():
        for command in COMMANDS.values():
            assert finding in run(*command, "--episode", folder, code=2)
    for name in ("calibrate", "recalibrate"):
        assert "no input ever changes" in run(*COMMANDS[name], "--episode", "flat", code=2)
    assert "'x' has no range" in run(*COMMANDS["ranges"], "--episode", "flat", code=1)
    unreachable = [*COMMANDS["calibrate"], "--thresholds", "0.99,0.999", "--episode", "logs"]
    assert "no threshold gives a write rate of 0.3" in run(*unreachable, code=1)
    assert not (work / "out").exists()
