"""Ranges from a closed loop: exact where they are merged, and true to the model's own state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime.quantization.calibrate import HistogramCollector
from torch import nn

from stategate.calibration.ranges.record import Roller, measured
from stategate.calibration.ranges.statistics import Statistics, decade_of
from stategate.cli.main import main
from stategate.contract import (
    Bundle,
    Episode,
    EpisodeSet,
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
)
from stategate.contract.episodes import BLOCK_STEPS, EpisodeFile
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.contract.precision import RangeRecord, TensorRange
from stategate.export.frontends.references import TorchReference
from stategate.models.step import StepResult

FLOATS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
)


def gathered(parts: list[np.ndarray], first_step: int = 0) -> Statistics:
    statistics = Statistics()
    for part in parts:
        statistics.add(part, first_step)
    return statistics


@given(st.lists(FLOATS, min_size=2, max_size=6), st.data())
def test_merged_statistics_are_those_of_all_at_once(parts: list, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(parts) - 1))
    merged = gathered(parts[:cut]).merged(gathered(parts[cut:]))
    whole = np.concatenate([part.ravel() for part in parts])
    once = gathered([whole[:, None]])
    assert np.array_equal(merged.histogram, once.histogram)
    assert merged.all.count == once.all.count == merged.histogram.sum() == whole.size
    assert (merged.all.low, merged.all.high) == (whole.min(), whole.max())
    wide = whole.astype(np.float64)
    scale = np.abs(wide).max() + 1e-30
    assert abs(merged.all.mean - wide.mean()) <= 1e-12 * scale
    assert abs(merged.all.squares - np.square(wide - wide.mean()).sum()) <= 1e-9 * scale**2 * 500


def test_every_method_finds_a_range_that_numpy_finds_too() -> None:
    rng = np.random.default_rng(0)
    values = rng.laplace(size=(500, 64)).astype(np.float32)
    limits = gathered([values], 100).limits()
    sizes = np.abs(values.astype(np.float64))
    assert limits["minmax"] == sizes.max()
    assert limits["percentile"] == pytest.approx(np.quantile(sizes, 0.9999), rel=1 / 16)

    def error(limit: float) -> float:
        scale = limit / 127
        return float(np.square(values - np.clip(np.round(values / scale), -127, 127) * scale).sum())

    best = min(error(sizes.max() * k / 200) for k in range(1, 201))
    assert error(limits["mse"]) <= 1.05 * best
    assert 0.25 * sizes.max() <= limits["entropy"] <= sizes.max()


@pytest.mark.parametrize("count", [1, 10, 144, 5_000])
def test_the_entropy_range_is_that_of_the_librarys_own_calibrator(count: int) -> None:
    values = np.random.default_rng(1).normal(size=(count, 1)).astype(np.float32)
    ours = gathered([values], 100).limits()["entropy"]
    oracle = HistogramCollector("entropy", True, 1024, 128, 99.99, "same")
    oracle.collect({"x": [values.ravel()]})
    theirs = max(
        abs(float(np.ravel(end)[0])) for end in oracle.compute_collection_result()["x"][:2]
    )
    assert ours == pytest.approx(theirs, rel=0.15)


@pytest.mark.parametrize("limit", [-1.0, 0.0, 1e300])
def test_a_range_that_scales_nothing_is_refused(limit: float) -> None:
    with pytest.raises(CalibrationError, match="cannot have such a range"):
        TensorRange("x", {"minmax": limit}, ())


@pytest.mark.parametrize(("step", "decade"), [(0, 0), (9, 0), (10, 1), (99, 1), (100, 2)])
def test_decades_begin_at_powers_of_ten(step: int, decade: int) -> None:
    assert decade_of(step) == decade


class Growing(nn.Module):
    """Adds its input up behind a gate that only the host decides on."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 2)),),
            outputs=(TensorSpec("y", (1, 2)),),
            states=(StateSpec("sum", (1, 2), gate="gate"),),
            gates=(GateSpec("gate", "hard", (1, 1), 0.5),),
        )

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(2))
            self.mix.bias.zero_()

    def initial_states(self) -> dict[str, torch.Tensor]:
        return {"sum": torch.tensor([[1.0, -1.0]])}

    def step(self, inputs: dict, states: dict) -> StepResult:
        total = states["sum"] + inputs["x"].abs()
        return StepResult({"y": self.mix(total)}, {"sum": total}, {"gate": inputs["x"][:, :1]})


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory, seal_model: Callable[..., Bundle]) -> Bundle:
    return seal_model(tmp_path_factory.mktemp("growing") / "bundle", Growing())


def recorded(folder: Path, *episodes: Episode) -> EpisodeSet:
    for i, episode in enumerate(episodes):
        (folder / f"{i}.npz").write_bytes(episode.to_bytes())
    return EpisodeSet.open(folder)


def inputs(steps: int, seed: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode({"x": rng.standard_normal((steps, 1, 2)).astype(np.float32)})


def test_ranges_are_those_of_the_models_own_state_and_grow_by_decades(
    growing: Bundle, tmp_path: Path
) -> None:
    episode = inputs(230)
    record = measured(Roller(growing), recorded(tmp_path, episode))
    reference = TorchReference(Growing(), {"gate": 0.5})
    seen = np.stack([reference.step(step)[0]["y"] for step in episode])
    (y,) = [tensor for tensor in record.tensors if tensor.name == "y"]
    cuts = [(0, 10), (10, 100), (100, 230)]
    assert len(y.horizons) == len(cuts)
    for horizon, (begin, end) in zip(y.horizons, cuts, strict=True):
        assert horizon.count == (end - begin) * 2
        assert horizon.low == pytest.approx(seen[begin:end].min(), rel=1e-6)
        assert horizon.high == pytest.approx(seen[begin:end].max(), rel=1e-6)
        assert horizon.mean == pytest.approx(seen[begin:end].mean(dtype=np.float64), rel=1e-6)
    sizes = [h.high for h in y.horizons]
    assert sizes == sorted(sizes) and sizes[-1] > 20


def test_each_episode_begins_at_the_initial_state_and_may_come_in_pieces(
    growing: Bundle, tmp_path: Path
) -> None:
    roller = Roller(growing)
    a, b = inputs(70, 1), inputs(130, 2)
    pieces = [Episode({"x": b.inputs["x"][:33]}), Episode({"x": b.inputs["x"][33:]})]
    both = measured(roller, recorded(tmp_path, a, b))
    one, two = roller.roll([a]), roller.roll(pieces)
    assert (both.steps, both.episodes) == (200, ("0.npz", "1.npz"))
    for tensor in both.tensors:
        together = one[tensor.name].merged(two[tensor.name])
        assert tensor.horizons == together.horizons()


def test_bad_recordings_are_refused_with_the_finding(growing: Bundle, tmp_path: Path) -> None:
    roller = Roller(growing)
    broken = inputs(150)
    broken.inputs["x"][77, 0, 1] = np.nan
    with pytest.raises(EpisodeError, match=r"'x' of .*0.npz is not finite\n.*step 77"):
        measured(roller, recorded(tmp_path, broken))
    flat = Episode({"x": np.full((20, 1, 2), 0.25, np.float32)})
    with pytest.raises(CalibrationError, match=r"'x' has no range\n.*0.25 in all of 20 steps"):
        measured(roller, recorded(tmp_path, flat))
    with pytest.raises(EpisodeError, match="empty"):
        recorded(tmp_path, inputs(0))
    wide = Episode({"x": np.ones((20, 1, 3), np.float32)})
    with pytest.raises(EpisodeError, match="does not fit the model"):
        measured(roller, recorded(tmp_path, wide))


def test_a_long_recording_is_read_in_blocks_and_never_held(
    growing: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = recorded(tmp_path, inputs(9000))
    monkeypatch.setattr(EpisodeFile, "load", lambda file: pytest.fail("loaded whole"))
    held: list[int] = []
    check = Episode.check
    monkeypatch.setattr(Episode, "check", lambda e, spec: (held.append(e.steps), check(e, spec)))
    assert measured(Roller(growing), episodes).steps == 9000 == sum(held)
    assert max(held) <= BLOCK_STEPS


def test_only_a_float_bundle_of_one_session_is_measured(tiny_pool_bundle: Path) -> None:
    with pytest.raises(CalibrationError, match="4 sessions"):
        Roller(Bundle.open(tiny_pool_bundle))


def test_the_command_writes_a_record_and_tells_what_still_grows(
    growing: Bundle, tmp_path: Path
) -> None:
    log, out = tmp_path / "log.npz", tmp_path / "ranges.json"
    log.write_bytes(inputs(120).to_bytes())
    arguments = ["ranges", str(growing.path), "--episode", str(log), "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "still growing" in result.output
    record = RangeRecord.load(out)
    assert record.model_sha256 == growing.manifest.model.sha256
    assert record.steps == 120
    out.write_text(out.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(CalibrationError, match="another version"):
        RangeRecord.load(out)


def test_a_folder_in_the_place_of_the_record_is_refused_before_the_work(tmp_path: Path) -> None:
    arguments = ["recalibrate", str(tmp_path), str(tmp_path), "--episode", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2 and "is a directory" in result.output
