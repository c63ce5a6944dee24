from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn

from stategate.calibration.thresholds.recalibrate import recalibrate
from stategate.cli.main import main
from stategate.contract import Bundle, CalibrationRecord, Episode, StepSpec
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.export.inputs import random_episode
from stategate.models.step import StepResult


class Shifted(nn.Module):
    """A model whose gate came out 0.3 too high, and a little noisy, as rounding makes it."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def step_spec(self) -> StepSpec:
        return self.exact.step_spec()

    def step(self, inputs: dict, states: dict) -> StepResult:
        shift = 0.3 + 0.02 * inputs["x"][:, 1:2]
        result = self.exact.step({**inputs, "threshold": inputs["threshold"] - shift}, states)
        return result._replace(gates={"gate": inputs["x"][:, :1] + shift})


@pytest.fixture
def shifted_bundle(tmp_path: Path, seal_model, tiny) -> Path:
    return seal_model(tmp_path / "shifted", Shifted(tiny)).path


def episodes(bundle: Path, count: int = 2):
    spec = Bundle.open(bundle).manifest.step
    return [random_episode(spec, 300, seed) for seed in range(count)]


def test_a_shifted_gate_gets_the_threshold_that_undoes_the_shift(
    tiny_bundle: Path, shifted_bundle: Path
) -> None:
    (gate,) = recalibrate(tiny_bundle, shifted_bundle, episodes(tiny_bundle)).gates
    assert gate.threshold == pytest.approx(0.3, abs=0.03)
    points = {point.threshold: point for point in gate.curve}
    before, after = points[0.0], points[gate.threshold]
    assert before.flip_rate > 0.08 and after.flip_rate < 0.012
    x = np.concatenate([e.inputs["x"][:, 0, 0] for e in episodes(tiny_bundle)])
    assert after.write_rate == pytest.approx((x > 0).mean(), abs=0.01)
    assert after.output_error < before.output_error


def test_a_faithful_candidate_keeps_its_threshold(tiny_bundle: Path) -> None:
    (gate,) = recalibrate(tiny_bundle, tiny_bundle, episodes(tiny_bundle)).gates
    assert gate.threshold == 0.0
    assert next(p for p in gate.curve if p.threshold == 0.0).flip_rate == 0.0


def test_the_command_writes_a_record_for_the_candidates_weights(
    tmp_path: Path, tiny_bundle: Path, shifted_bundle: Path
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for i, episode in enumerate(episodes(tiny_bundle)):
        (logs / f"{i}.npz").write_bytes(episode.to_bytes())
    out = tmp_path / "record.json"
    command = ["recalibrate", str(tiny_bundle), str(shifted_bundle), "--episode", str(logs)]
    result = CliRunner().invoke(main, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "flips" in result.stdout and "<- chosen" in result.stdout
    record = CalibrationRecord.load(out)
    assert record.model_sha256 == Bundle.open(shifted_bundle).manifest.model.sha256
    assert record.gates[0].gate == "gate" and record.steps == 600


def test_bundles_of_two_models_and_no_episodes_are_refused(
    tiny_bundle: Path, aura_bundle: Path
) -> None:
    with pytest.raises(CalibrationError, match="different inputs"):
        recalibrate(tiny_bundle, aura_bundle, episodes(tiny_bundle))
    flat = Episode({"x": np.full((20, 1, 4), 0.25, np.float32)})
    with pytest.raises(EpisodeError, match="no input ever changes"):
        recalibrate(tiny_bundle, tiny_bundle, [flat])
    with pytest.raises(EpisodeError, match="no episodes"):
        recalibrate(tiny_bundle, tiny_bundle, [])
