from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stategate.calibration.gate import calibrate_gate
from stategate.contract import CalibrationRecord, Episode
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.models.step import commit, initial_states, threshold_inputs
from stategate.runtime.cli import main

THRESHOLDS = (-0.5, 0.0, 0.7, 5.0)


@pytest.fixture
def episode() -> Episode:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((120, 1, 4)).astype(np.float32)
    return Episode({"x": x}, {"y": rng.integers(-1, 4, 120)})


@torch.no_grad()
def lived_alone(model, episode: Episode, threshold: float) -> tuple[float, float]:
    """The same question asked the slow way: one threshold, one loop, the runtime's own rule."""
    spec, states = model.step_spec(), initial_states(model)
    fixed = threshold_inputs(spec, {"gate": threshold})
    writes = right = judged = 0
    for t, inputs in enumerate(episode):
        tensors = {name: torch.from_numpy(np.array(a)) for name, a in inputs.items()}
        result = model.step({**tensors, **fixed}, states)
        states = commit(spec, states, result, {"gate": threshold})
        writes += bool(result.gates["gate"] > threshold)
        label = episode.labels["y"][t]
        judged += label >= 0
        right += label >= 0 and int(result.outputs["y"].argmax()) == label
    return writes / episode.steps, right / judged


def test_every_threshold_lives_its_own_closed_loop(tiny, episode: Episode) -> None:
    gate = calibrate_gate(tiny, episode, THRESHOLDS)
    assert [point.threshold for point in gate.curve] == list(THRESHOLDS)
    for point in gate.curve:
        alone = lived_alone(tiny, episode, point.threshold)
        assert (point.write_rate, point.accuracy) == pytest.approx(alone)


def test_the_fewest_writes_within_tolerance_win(tiny, episode: Episode) -> None:
    strict = calibrate_gate(tiny, episode, THRESHOLDS, tolerance=0.0)
    best = max(point.accuracy for point in strict.curve)
    chosen = next(p for p in strict.curve if p.threshold == strict.threshold)
    assert chosen.accuracy == best
    anything = calibrate_gate(tiny, episode, THRESHOLDS, tolerance=1.0)
    assert anything.threshold == 5.0 and anything.write_rate == 0.0


def test_an_episode_without_labels_is_refused(tiny, episode: Episode) -> None:
    for labels in ({}, {"y": np.full(120, -1)}):
        with pytest.raises(CalibrationError, match="no labels"):
            calibrate_gate(tiny, Episode(episode.inputs, labels), THRESHOLDS)


def test_an_episode_of_another_model_is_refused(tiny) -> None:
    with pytest.raises(EpisodeError, match="not the model's"):
        calibrate_gate(tiny, Episode({"z": np.zeros((3, 1, 4), np.float32)}), THRESHOLDS)


def test_no_thresholds_are_refused(tiny, episode: Episode) -> None:
    with pytest.raises(CalibrationError, match="no thresholds"):
        calibrate_gate(tiny, episode, ())


def test_the_command_writes_a_record_that_belongs_to_the_weights(tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    arguments = ["calibrate", "aura-hard", "--steps", "300", "--thresholds", "-2,0", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert len(record["gates"][0]["curve"]) == 2
    assert CalibrationRecord.load(out).steps == 300
    out.write_bytes(out.read_bytes()[:-9])
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationRecord.load(out)


def test_a_threshold_that_is_no_number_is_wrong_use(tmp_path: Path) -> None:
    for text in ("low", "inf,1", "nan", "1e39"):
        arguments = ["calibrate", "aura-hard", "--thresholds", text, "--out", str(tmp_path / "c")]
        assert CliRunner().invoke(main, arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_only_the_host_decides_can_be_calibrated(episode: Episode) -> None:
    from torch import nn

    from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
    from stategate.models.step import StepResult

    class Hosted(nn.Module):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", (1, 4)),),
                (TensorSpec("y", (1, 4)),),
                (StateSpec("h", (1, 4), gate="gate"),),
                (GateSpec("gate", threshold=0.0),),
            )

        def step(self, inputs: dict, states: dict) -> StepResult:
            h = 0.5 * states["h"] + inputs["x"]
            return StepResult({"y": states["h"]}, {"h": h}, {"gate": inputs["x"][0, :1]})

    gate = calibrate_gate(Hosted(), episode, THRESHOLDS)
    for point in gate.curve:
        assert (point.write_rate, point.accuracy) == pytest.approx(
            lived_alone(Hosted(), episode, point.threshold)
        )
