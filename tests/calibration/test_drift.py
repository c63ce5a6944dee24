from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from html import unescape
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.calibration.drift.loop import drift
from stategate.calibration.drift.record import DriftLimits, DriftReport
from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import CalibrationError, EpisodeError, ResultError
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.inputs import random_episode
from stategate.export.passes.state_precision import stored
from stategate.export.seal.pack import seal
from stategate.export.seal.verify import Limits
from stategate.models.load import LoadedModel
from stategate.runtime import Session

ANYTHING = Limits(1e9, 1.0)


def sealed(out: Path, model, storage: dict[str, str], feedback: bool = False) -> Path:
    loaded = LoadedModel("m", "custom", "tests", model, model, None)
    candidate = candidate_from(loaded)
    reference = reference_for(model, candidate)
    if storage:
        candidate = stored(candidate, storage, feedback)
    episode = random_episode(candidate.spec, 20)
    return seal(out, candidate, reference, episode, limits=ANYTHING).path


@pytest.fixture(scope="module")
def episode() -> Episode:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((300, 1, 4)).astype(np.float32)
    return Episode({"x": x}, {"y": rng.integers(-1, 4, 300)})


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    return sealed(tmp_path_factory.mktemp("int8") / "bundle", tiny_model(), {"h": "int8"})


def test_a_bundle_beside_itself_does_not_drift(tiny_bundle: Path, episode: Episode) -> None:
    result = drift(tiny_bundle, tiny_bundle, [("e", episode)], 300)
    assert result.passed and result.first_flip is None and result.first_divergence is None
    assert [point.step for point in result.milestones] == [1, 10, 100, 300]
    assert result.total.output_error == result.total.state_error == 0.0
    assert result.total.norm_growth == 1.0
    norm = result.total.norms["h"]
    assert norm[0] == norm[1] > 0 and result.milestones[0].norms["h"][0] <= norm[0]
    with Session.open(tiny_bundle) as session:
        right = 0
        for t, inputs in enumerate(episode):
            answer = session.step(**inputs)["y"].argmax()
            right += bool(episode.labels["y"][t] >= 0 and answer == episode.labels["y"][t])
        assert result.total.writes == (session.ledger.writes, session.ledger.writes)
    assert result.total.right == (right, right)


def test_errors_are_those_of_two_loops_compared_by_hand(
    tiny_bundle: Path, rounded: Path, episode: Episode
) -> None:
    limits = DriftLimits(diverged_above=0.002)
    result = drift(tiny_bundle, rounded, [("e", episode)], 300, limits=limits)
    answers: list[np.ndarray] = []
    states: list[np.ndarray] = []
    for path in (tiny_bundle, rounded):
        with Session.open(path) as session:
            given, held = [], []
            for inputs in episode:
                given.append(session.step(**inputs)["y"].copy())
                scale = session.state("h.scale") if path == rounded else 1.0
                held.append(session.state("h") * scale)
        answers.append(np.stack(given))
        states.append(np.stack(held))
    gaps = np.abs(answers[0] - answers[1]).max(axis=(1, 2))
    unit = np.abs(answers[0]).max()
    assert result.total.output_error == pytest.approx(gaps.max() / unit, rel=1e-5)
    assert result.total.output_error_mean == pytest.approx(gaps.mean() / unit, rel=1e-5)
    assert result.total.output_error > 0
    assert result.first_divergence is not None
    step = result.first_divergence[0]
    units = np.maximum.accumulate(np.abs(answers[0]).max(axis=(1, 2)))
    assert step == int((gaps > 0.002 * units).argmax())
    assert result.tensors["count"] == 0.0
    off = np.abs(states[0] - states[1]).max() / np.abs(states[0]).max()
    assert result.tensors["h"] == result.total.state_error == pytest.approx(off, rel=1e-5)
    assert result.candidate.state_bytes < result.reference.state_bytes


def test_several_episodes_add_up_and_each_starts_anew(
    tiny_bundle: Path, rounded: Path, episode: Episode
) -> None:
    one = drift(tiny_bundle, rounded, [("a", episode)], 300)
    two = drift(tiny_bundle, rounded, [("a", episode), ("b", episode)], 300)
    assert two.total.steps == 2 * one.total.steps
    assert two.total.writes == (2 * one.total.writes[0], 2 * one.total.writes[1])
    assert two.total.output_error == one.total.output_error
    assert two.total.output_error_mean == pytest.approx(one.total.output_error_mean)


def test_a_short_episode_is_repeated_up_to_the_horizon(
    tiny_bundle: Path, rounded: Path, episode: Episode
) -> None:
    result = drift(tiny_bundle, rounded, [("e", episode)], 1000, repeat=True)
    assert result.total.steps == 1000
    assert len(result.samples) < 200


def test_flips_are_counted_for_each_element_where_thresholds_differ(
    tiny_bundle: Path, tiny, episode: Episode, tmp_path: Path
) -> None:
    tiny.threshold = 0.5
    other = sealed(tmp_path / "other", tiny, {})
    result = drift(tiny_bundle, other, [("e", episode)], 300)
    between = (episode.inputs["x"][:, 0, 0] > 0) & (episode.inputs["x"][:, 0, 0] <= 0.5)
    assert result.gates == {"gate": (int(between.sum()),)}
    assert result.first_flip == (int(between.argmax()), "e")
    assert result.total.writes[0] - result.total.writes[1] == between.sum()
    told = " ".join(result.findings)
    assert "flipped decisions" in told and "write rate" in told


def test_a_candidate_that_fails_does_not_pass(
    tiny_bundle: Path, tiny, episode: Episode, tmp_path: Path
) -> None:
    import torch

    with torch.no_grad():
        tiny.mix.weight.fill_(1.0)

    class Blows(type(tiny)):
        def step(self, inputs, states):
            result = super().step(inputs, states)
            grown = states["h"] * 1e4 + 1.0
            return result._replace(states={**result.states, "h": grown})

    result = drift(tiny_bundle, sealed_raw(tmp_path, Blows()), [("e", episode)], 300)
    assert not result.passed
    assert result.fault is not None and "fails in step" in result.fault
    assert 0 < result.total.steps < 300


def sealed_raw(tmp_path: Path, model) -> Path:
    """A bundle that is only checked for four steps."""
    loaded = LoadedModel("m", "custom", "tests", model, model, None)
    candidate = candidate_from(loaded)
    out = tmp_path / "raw"
    check = random_episode(candidate.spec, 4)
    return seal(out, candidate, reference_for(model, candidate), check, limits=ANYTHING).path


def test_bad_input_is_refused_with_the_finding(
    tiny_bundle: Path, aura_bundle: Path, episode: Episode
) -> None:
    with pytest.raises(CalibrationError, match="different inputs"):
        drift(tiny_bundle, aura_bundle, [("e", episode)], 300)
    with pytest.raises(EpisodeError, match="0 episodes"):
        drift(tiny_bundle, tiny_bundle, [], 300)
    wrong = Episode({"z": episode.inputs["x"]})
    with pytest.raises(EpisodeError, match="inputs are not"):
        drift(tiny_bundle, tiny_bundle, [("e", wrong)], 300)
    holes = episode.inputs["x"].copy()
    holes[7] = np.nan
    with pytest.raises(EpisodeError, match="step 7"):
        drift(tiny_bundle, tiny_bundle, [("e", Episode({"x": holes}))], 300)


def test_the_command_writes_a_record_and_a_page_and_says_no_with_1(
    tiny_bundle: Path, rounded: Path, episode: Episode, tmp_path: Path
) -> None:
    (tmp_path / "e.npz").write_bytes(episode.to_bytes())
    common = [str(tiny_bundle), str(rounded), "--episode", str(tmp_path / "e.npz")]
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["drift", *common, "--out", str(out), "--max-mean-error", "1"])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "drift.json").read_text())
    assert record["findings"] == [] and record["total"]["steps"] == 300
    html = (out / "drift.html").read_text()
    assert html.count("<svg") in (2, 3) and "prefers-color-scheme: dark" in html
    assert not re.search(r'(src|href)="(?!#)', html), "the page must stand alone"
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(set(identifiers)) == len(identifiers)
    done = CliRunner().invoke(main, ["drift", *common, "--out", str(out), "--max-mean-error", "0"])
    assert done.exit_code == 1
    assert "mean output error" in done.output


def test_the_page_of_a_report_is_the_same_every_time(
    tiny_bundle: Path, rounded: Path, episode: Episode
) -> None:
    from stategate.calibration.drift.page import page

    first, again = (page(drift(tiny_bundle, rounded, [("<e>", episode)], 100)) for _ in range(2))
    assert first == again
    assert "<e>" not in first


def test_a_report_is_saved_as_a_page_or_as_data_and_shows_itself_in_a_notebook(
    tiny_bundle: Path, episode: Episode, tmp_path: Path
) -> None:
    report = drift(tiny_bundle, tiny_bundle, [("e", episode)], 100)
    report.save(tmp_path / "drift.html")
    report.save(str(tmp_path / "drift.json"))
    html = (tmp_path / "drift.html").read_text()
    assert msgspec.json.decode((tmp_path / "drift.json").read_bytes(), type=DriftReport) == report
    frame = report._repr_html_()
    assert re.fullmatch(r'<iframe srcdoc="([^"]*)" [^<>]*></iframe>', frame)
    assert unescape(frame.partition('"')[2].partition('"')[0]) == html
    with pytest.raises(ResultError, match="page or data"):
        report.save(tmp_path / "drift.txt")


@pytest.mark.slow
def test_int8_loses_speech_that_error_feedback_keeps(
    speech: Callable[[str], tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import silero_vad
    source = Path(silero_vad.__file__).parent / "data" / "silero_vad_op18_ifless.onnx"
    samples, rate = speech("two_cities.wav")
    at = np.arange(0, len(samples) - 1, rate / 16000)[: 600 * 512]
    heard = np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
    padded = np.concatenate([np.zeros(64, np.float32), heard])
    windows = np.stack([padded[k : k + 576] for k in range(0, len(heard) - 511, 512)])
    (tmp_path / "e.npz").write_bytes(Episode({"input": windows[:, None]}).to_bytes())
    errors = {}
    for name, more in {
        "float32": [],
        "float16": ["--state-storage", "state=float16"],
        "int8-tensor": ["--state-storage", "state=int8-tensor"],
        "fed back": ["--state-storage", "state=int8-tensor", "--error-feedback"],
    }.items():
        arguments = ["adopt", str(source), "--dim", "batch=1", "--dim", "sequence=576", "--yes"]
        arguments += ["--const", "sr=16000", "--steps", "20", "--out", str(tmp_path / name), *more]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        assert Bundle.open(tmp_path / name).manifest.standing == (
            "sealed" if name == "float32" else "candidate"
        )
        pair = (tmp_path / "float32", tmp_path / name)
        episode = Episode.load(tmp_path / "e.npz")
        errors[name] = drift(*pair, [("e", episode)], 600, limits=DriftLimits())
    assert not errors["int8-tensor"].passed
    assert errors["fed back"].passed and errors["float16"].passed
    mean = {name: result.total.output_error_mean for name, result in errors.items()}
    assert mean["int8-tensor"] > 50 * mean["fed back"]
    heard = []
    for name in ("float32", "int8-tensor"):
        with Session.open(tmp_path / name) as session:
            heard.append([session.step(**i)["output"].item() > 0.5 for i in episode])
    apart = sum(a != b for a, b in zip(*heard, strict=True))
    assert errors["int8-tensor"].halved == {"output": apart} and apart > 0
    assert errors["fed back"].halved == {"output": 0}
