from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stategate.calibration.settings import Wish
from stategate.calibration.thresholds.curve import calibrate_gate
from stategate.cli.main import main
from stategate.common.statistics import rate_interval, student_t
from stategate.contract import (
    CalibrationRecord,
    Episode,
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
)
from stategate.contract.calibration import GateCalibration
from stategate.contract.errors import CalibrationError, EpisodeError, SpecError
from stategate.export.candidates import candidate_from
from stategate.models.load import LoadedModel
from stategate.models.memories.recurrent.cell import RecurrentStep
from stategate.models.memories.sega import Sega, SegaConfig
from stategate.models.step import StepResult, commit, initial_states, threshold_inputs
from stategate.models.weights import weights_sha256

THRESHOLDS = (-0.5, 0.0, 0.7, 5.0)


def drawn(seed: int, steps: int = 120, labels: bool = True) -> Episode:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps, 1, 4)).astype(np.float32)
    return Episode({"x": x}, {"y": rng.integers(-1, 4, steps)} if labels else {})


@pytest.fixture
def episodes() -> list[Episode]:
    return [drawn(4), drawn(5, steps=80), drawn(6)]


def gru(write_threshold: float | None = 0.0) -> RecurrentStep:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return RecurrentStep(nn.GRU(4, 6), nn.Linear(6, 4), write_threshold=write_threshold).eval()


@torch.no_grad()
def lived_alone(model, episode: Episode, threshold: float) -> tuple[int, int, int, np.ndarray]:
    """The same question asked the slow way: one threshold, one loop, the runtime's own rule."""
    spec, states = model.step_spec(), initial_states(model)
    gate = spec.gates[0].name
    fixed = threshold_inputs(spec, {gate: threshold})
    writes = openings = right = 0
    outputs = []
    for t, inputs in enumerate(episode):
        tensors = {name: torch.from_numpy(np.array(a)) for name, a in inputs.items()}
        result = model.step({**tensors, **fixed}, states)
        states = commit(spec, states, result, {gate: threshold})
        writes += bool((result.gates[gate] > threshold).any())
        openings += int((result.gates[gate] > threshold).sum())
        outputs.append(result.outputs["y"].numpy())
        if episode.labels and episode.labels["y"][t] >= 0:
            right += int(result.outputs["y"].argmax()) == episode.labels["y"][t]
    return writes, openings, right, np.stack(outputs)


def test_every_threshold_lives_its_own_closed_loop(tiny, episodes: list[Episode]) -> None:
    gate = calibrate_gate(tiny, episodes, THRESHOLDS)
    assert [point.threshold for point in gate.curve] == list(THRESHOLDS)
    judged = sum(int((e.labels["y"] >= 0).sum()) for e in episodes)
    plain = np.concatenate([lived_alone(tiny, e, 0.0)[3] for e in episodes])
    for point in gate.curve:
        alone = [lived_alone(tiny, e, point.threshold) for e in episodes]
        writes, right = (sum(one[i] for one in alone) for i in (0, 2))
        assert point.write_rate == point.element_rate == pytest.approx(writes / 320)
        assert point.accuracy == pytest.approx(right / judged)
        apart = np.concatenate([one[3] for one in alone]) - plain
        error = np.sqrt((apart**2).sum() / (plain**2).sum())
        assert point.output_error == pytest.approx(error, rel=1e-5)


def test_elements_of_a_vector_gate_are_counted_one_by_one(episodes: list[Episode]) -> None:
    gate = calibrate_gate(gru(), episodes, (0.0, 0.5, 0.6), Wish(max_output_error=9.0))
    for point in gate.curve:
        alone = [lived_alone(gru(), e, point.threshold) for e in episodes]
        assert point.write_rate == pytest.approx(sum(one[0] for one in alone) / 320)
        assert point.element_rate == pytest.approx(sum(one[1] for one in alone) / (320 * 6))
    assert gate.curve[1].element_rate < 0.9 and gate.curve[1].write_rate > 0.9


def test_the_fewest_writes_within_tolerance_win(tiny, episodes: list[Episode]) -> None:
    strict = calibrate_gate(tiny, episodes, THRESHOLDS, Wish(tolerance=0.0))
    chosen = next(p for p in strict.curve if p.threshold == strict.threshold)
    assert chosen.accuracy == max(point.accuracy for point in strict.curve)
    anything = calibrate_gate(tiny, episodes, THRESHOLDS, Wish(tolerance=1.0))
    assert anything.threshold == 5.0 and anything.write_rate == 0.0


def test_thresholds_are_proposed_in_the_gates_own_units(episodes: list[Episode]) -> None:
    class Scaled(nn.Module):
        """Its gate is the first input, in millionths."""

        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", (1, 4)),),
                (TensorSpec("y", (1, 4)),),
                (StateSpec("h", (1, 4), gate="gate"),),
                (GateSpec("gate", threshold=0.0),),
            )

        def step(self, inputs: dict, states: dict) -> StepResult:
            h = 0.5 * states["h"] + inputs["x"]
            return StepResult({"y": states["h"]}, {"h": h}, {"gate": 1e-6 * inputs["x"][0, :1]})

    gate = calibrate_gate(Scaled(), episodes)
    rates = [point.write_rate for point in gate.curve]
    assert rates[0] == 1.0 and rates[-1] == 0.0 and len(set(rates)) >= 8
    assert max(abs(point.threshold) for point in gate.curve) < 1e-5
    for point in gate.curve:  # the host alone decides here, as the runtime does
        writes = sum(lived_alone(Scaled(), e, point.threshold)[0] for e in episodes)
        assert point.write_rate == pytest.approx(writes / 320)


class Stamped(nn.Module):
    """Its gate is the first input; right where the step before was written."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("h", (1, 2), gate="gate"),),
            (GateSpec("gate", threshold=0.0),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x, h = inputs["x"], states["h"]
        y = torch.stack((x[:, 1] - 1.5, h[:, 1]), dim=-1)
        return StepResult({"y": y}, {"h": x}, {"gate": x[0, :1]})


def stamped(gates: np.ndarray, bound: float) -> Episode:
    """Labelled in the steps after a gate value above ``bound``."""
    inputs = np.stack((gates, np.arange(len(gates))), axis=-1)[:, None].astype(np.float32)
    labels = np.where(np.roll(inputs[:, 0, 0], 1) > bound, 1, -1)
    return Episode({"x": inputs}, {"y": labels})


def test_the_last_threshold_that_costs_nothing_is_found_between_two_proposals() -> None:
    gates = np.random.default_rng(0).random(1000)
    # Proposals lie at the quantiles 0.5 and 0.65.
    gate = calibrate_gate(Stamped(), [stamped(gates, 0.6)], wish=Wish(tolerance=0))
    least = gates[gates > 0.6].min()
    assert least - 0.15 / 8 - 0.01 < gate.threshold < least


def test_of_thresholds_that_write_as_few_the_farthest_from_a_cliff_wins() -> None:
    gates = np.random.default_rng(0).random(1000)
    gates = np.where(gates < 0.6, gates / 1.5, 0.5 + gates / 2)  # none between 0.4 and 0.8
    episode = [stamped(gates, 0.8)]
    gate = calibrate_gate(Stamped(), episode, wish=Wish(tolerance=0))
    assert 0.38 < gate.threshold < 0.46 and "not 0.7" in gate.rule and "misses" in gate.rule
    # Thresholds that a person names are taken as they are: the fewest writes, and the highest.
    named = calibrate_gate(Stamped(), episode, (0.5, 0.6, 0.7, 0.9), Wish(tolerance=0))
    assert named.threshold == pytest.approx(0.7) and "not" not in named.rule


@pytest.mark.slow
def test_a_wanted_write_rate_is_found(episodes: list[Episode]) -> None:
    gate = calibrate_gate(gru(), episodes, wish=Wish(write_rate=0.4))
    chosen = next(p for p in gate.curve if p.threshold == gate.threshold)
    assert chosen.element_rate == pytest.approx(0.4, rel=0.05)


def test_a_write_rate_out_of_reach_is_refused_with_what_can_be_had(
    tiny, episodes: list[Episode]
) -> None:
    with pytest.raises(CalibrationError, match=r"rates from 0.2875 to 0.3844"):
        calibrate_gate(tiny, episodes, (0.2, 0.6), Wish(write_rate=0.9))


def test_an_accuracy_out_of_reach_is_refused(tiny, episodes: list[Episode]) -> None:
    with pytest.raises(CalibrationError, match=r"accuracies up to 0\.\d+ over thresholds -0.5"):
        calibrate_gate(tiny, episodes, THRESHOLDS, Wish(accuracy=0.99))
    easy = calibrate_gate(tiny, episodes, THRESHOLDS, Wish(accuracy=0.01))
    assert easy.threshold == 5.0


@pytest.mark.slow
def test_without_labels_the_output_error_chooses() -> None:
    plain = [drawn(1, labels=False), drawn(2, labels=False)]
    gate = calibrate_gate(gru(), plain, wish=Wish(max_output_error=0.1))
    chosen = next(p for p in gate.curve if p.threshold == gate.threshold)
    assert 0.05 < chosen.output_error <= 0.1 and chosen.element_rate < 1.0
    assert gate.curve[0].output_error < 1e-6 and gate.reference == 0.0
    with pytest.raises(CalibrationError, match="no labels"):
        calibrate_gate(gru(), plain)
    with pytest.raises(CalibrationError, match="no threshold meets"):
        calibrate_gate(gru(), plain, (0.5,), Wish(max_output_error=0.0))


@pytest.mark.parametrize("name", ["tolerance", "accuracy", "write_rate", "max_output_error"])
def test_nothing_is_chosen_by_nan(name: str) -> None:
    with pytest.raises(CalibrationError, match="NaN is nothing to choose"):
        Wish(**{name: float("nan")})


def test_student_t_is_that_of_the_tables() -> None:
    for freedom, t in ((1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (30, 2.042)):
        assert student_t(freedom) == pytest.approx(t, abs=6e-4)


def test_an_interval_covers_the_truth_as_often_as_it_says_and_needs_two_episodes() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        rates = np.clip(rng.normal(0.4, 0.05, 6), 0, 1)
        found = rate_interval((rates * 1000).astype(np.int64), np.full(6, 1000))
        hits += found.low <= 0.4 <= found.high
    assert 0.92 < hits / 400 < 0.98
    assert rate_interval(np.array([3]), np.array([10])) is None


def test_one_episode_leaves_the_confidence_unknown(tiny, episodes: list[Episode]) -> None:
    alone = calibrate_gate(tiny, episodes[:1], THRESHOLDS)
    assert all(p.write_interval is None and p.accuracy_interval is None for p in alone.curve)
    several = calibrate_gate(tiny, episodes, THRESHOLDS)
    point = several.curve[1]
    assert point.write_interval.low < point.element_rate < point.write_interval.high


def test_what_cannot_be_calibrated_is_refused(tiny, episodes: list[Episode]) -> None:
    with pytest.raises(EpisodeError, match="no episodes"):
        calibrate_gate(tiny, [], THRESHOLDS)
    with pytest.raises(EpisodeError, match="not the model's"):
        calibrate_gate(tiny, [Episode({"z": np.zeros((3, 1, 4), np.float32)})], THRESHOLDS)
    with pytest.raises(EpisodeError, match="empty"):
        calibrate_gate(tiny, [drawn(1, steps=0)], THRESHOLDS)
    broken = drawn(1)
    broken.inputs["x"][7, 0, 2] = np.nan
    with pytest.raises(EpisodeError, match="first of them step 7"):
        calibrate_gate(tiny, [broken], THRESHOLDS)
    still = Episode({"x": np.ones((30, 1, 4), np.float32)}, {"y": np.zeros(30, np.int64)})
    with pytest.raises(CalibrationError, match=r"never changes(.|\n)*1 in every step"):
        calibrate_gate(tiny, [still])
    with pytest.raises(CalibrationError, match="no thresholds"):
        calibrate_gate(tiny, episodes, ())
    with pytest.raises(CalibrationError, match="write_threshold=0.0"):
        calibrate_gate(gru(None), episodes, THRESHOLDS)
    with pytest.raises(CalibrationError, match="one rule"):
        Wish(accuracy=0.5, write_rate=0.5)


def test_the_command_writes_a_record_that_belongs_to_the_weights(tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    arguments = ["calibrate", "aura-hard", "--steps", "150", "--episodes", "2", "--json"]
    result = CliRunner().invoke(main, [*arguments, "--thresholds", "-2,0", "--out", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert len(record["gates"][0]["curve"]) == 2
    assert CalibrationRecord.load(out).steps == 300
    out.write_bytes(out.read_bytes()[:-9])
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationRecord.load(out)
    out.write_text('{"version": 1}')
    with pytest.raises(CalibrationError, match="another version"):
        CalibrationRecord.load(out)


def test_the_command_takes_a_folder_of_episodes_for_a_model_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "import torch\nfrom stategate.models.memories.recurrent.cell import MinGru\n"
        "def policy():\n    torch.manual_seed(1)\n"
        "    return MinGru(4, 6, 4, 1, write_threshold=0.0)\n"
    )
    logs = tmp_path / "logs"
    logs.mkdir()
    command = ["calibrate", f"{tmp_path}/my.py:policy", "--episode", str(logs), "--out",
               str(tmp_path / "c.json"), "--max-output-error", "0.2"]  # fmt: skip
    empty = CliRunner().invoke(main, command)
    assert empty.exit_code == 2 and "no episodes" in empty.output
    for seed in range(2):
        (logs / f"{seed}.npz").write_bytes(drawn(seed, labels=False).to_bytes())
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "<- chosen" in result.stdout and "output error" in result.stdout


def test_a_threshold_that_is_no_number_is_wrong_use(tmp_path: Path) -> None:
    for text in ("low", "inf,1", "nan", "1e39"):
        arguments = ["calibrate", "aura-hard", "--thresholds", text, "--out", str(tmp_path / "c")]
        assert CliRunner().invoke(main, arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sega() -> Sega:
    config = SegaConfig(4, 2, 8, 1, 2, 16, 1e-5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Sega(config).eval()


@pytest.mark.slow
def test_thresholds_obey_the_rule_of_the_model(sega: Sega) -> None:
    rng = np.random.default_rng(7)
    seen = [Episode({"obs": rng.standard_normal((30, 1, 2, 8)).astype(np.float32)})]
    for threshold in (1.0, 1 - 1e-9, -0.25):  # the first step's gate is exactly 1, and must write
        with pytest.raises(CalibrationError, match=r"cannot have such[\s\S]*0 up to but not 1"):
            calibrate_gate(sega, seen, (0.5, threshold), Wish(max_output_error=0.1))
    gate = calibrate_gate(sega, seen, wish=Wish(max_output_error=10.0))
    assert all(0 <= point.threshold < 1 for point in gate.curve)
    assert gate.curve[0].write_rate >= gate.curve[-1].write_rate > 0


@pytest.mark.slow
def test_a_record_edited_past_the_models_rule_is_refused_by_export(sega: Sega) -> None:
    loaded = LoadedModel("sega", "sega", "tests", sega, sega, None)
    chosen = GateCalibration("write", 1 - 1e-9, 0.1, "by hand", ())
    record = CalibrationRecord(weights_sha256(sega), "none", 1, (chosen,))
    with pytest.raises(SpecError, match=r"cannot have this threshold[\s\S]*1.0 in float32"):
        candidate_from(loaded).calibrated(record)
