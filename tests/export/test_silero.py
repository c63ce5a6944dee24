"""A real pretrained speech model, adopted as its package ships it, on real recordings of speech."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.runtime import Session

CONTEXT, WINDOW = 64, 512
AXES = ["--dim", "batch=1", "--dim", "sequence=576"]
RECORDINGS = ["beckett.wav", "endgame_nagg_nell.wav", "two_cities.wav"]


def shipped(name: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import silero_vad
    return Path(silero_vad.__file__).parent / "data" / name


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("silero") / "bundle"
    arguments = ["--shape", "input=1,576", "--shape", "state=2,1,128", "--const", "sr=16000"]
    arguments += ["--engines", "onnxruntime,native"]
    source = str(shipped("silero_vad.onnx"))
    result = CliRunner().invoke(main, ["adopt", source, *arguments, "--yes", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "no native engine" not in result.stderr
    return out


def at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    """Linear interpolation: what both sides hear is the same, and it is still speech."""
    seconds = np.arange(len(samples)) / rate
    wanted = np.arange(0.0, seconds[-1], 1.0 / 16000.0)
    return np.interp(wanted, seconds, samples).astype(np.float32)


@pytest.mark.slow
@pytest.mark.case("C3")
@pytest.mark.parametrize(
    ("recording", "engine", "gap"),
    [*((r, "onnxruntime", 1e-6) for r in RECORDINGS), (RECORDINGS[0], "native", 1e-5)],
)
def test_speech_probabilities_equal_the_packages_own_wrapper(
    bundle: Path,
    recording: str,
    engine: str,
    gap: float,
    speech: Callable[[str], tuple[np.ndarray, int]],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from silero_vad.utils_vad import OnnxWrapper

        wrapper = OnnxWrapper(str(shipped("silero_vad.onnx")), force_onnx_cpu=True)
    samples = at_16_khz(*speech(recording))
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    heard = np.zeros(CONTEXT, np.float32)
    ours, theirs = [], []
    with Session.open(bundle, engine=engine) as session:
        for window in windows:
            joined = np.concatenate([heard, window])[None]
            heard = window[-CONTEXT:]
            ours.append(session.step(input=joined)["output"].item())
            theirs.append(wrapper(torch.from_numpy(window), 16000).item())
        assert session.ledger.steps == session.ledger.writes == len(windows)
    np.testing.assert_allclose(ours, theirs, atol=gap, rtol=0)
    # It really hears something: much of a recording of speech is speech.
    assert np.mean(np.array(ours) > 0.5) > 0.4


@pytest.fixture(scope="module")
def with_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file, handed the new samples alone; what it heard last is a state."""
    out = tmp_path_factory.mktemp("silero-context") / "bundle"
    arguments = ["--shape", "input=1,576", "--shape", "state=2,1,128", "--const", "sr=16000"]
    arguments += ["--context", f"input={CONTEXT}", "--yes", "--steps", "50", "--out", str(out)]
    result = CliRunner().invoke(main, ["adopt", str(shipped("silero_vad.onnx")), *arguments])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
@pytest.mark.case("D2")
@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_bundle_that_keeps_the_context_hears_what_the_packages_wrapper_hears(
    with_context: Path, recording: str, speech: Callable[[str], tuple[np.ndarray, int]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from silero_vad.utils_vad import OnnxWrapper

        wrapper = OnnxWrapper(str(shipped("silero_vad.onnx")), force_onnx_cpu=True)
    samples = at_16_khz(*speech(recording))
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, 1, WINDOW)
    theirs, ours = [], []
    with Session.open(with_context) as session:
        for window in windows:
            ours.append(session.step(input=window)["output"].item())
            theirs.append(wrapper(torch.from_numpy(window), 16000).item())
        np.testing.assert_array_equal(session.state("input.context"), windows[-1][:, -CONTEXT:])
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    assert np.mean(np.array(ours) > 0.5) > 0.4


@pytest.mark.case("D2")
def test_a_bundle_with_context_carries_the_file_untouched(with_context: Path) -> None:
    opened = Bundle.open(with_context)
    shown = {file.path: file for file in opened.manifest.files}
    original = shipped("silero_vad.onnx").read_bytes()
    assert opened.read(shown["adopted/silero_vad.onnx"]) == original
    assert [t.shape for t in opened.manifest.inputs] == [(1, WINDOW)]
    assert opened.manifest.verification is not None
    assert opened.manifest.verification.inputs.kind == "noise"


@pytest.mark.case("D2", "B8")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--context", "input=576"], "fewer than the extent of its last axis"),
        (["--context", "sound=64"], "a context is for something that is no input"),
        (["--context", "state=1"], "a context is for something that is no input"),
    ],
)
def test_a_context_that_fits_nothing_is_wrong_use(
    tmp_path: Path, words: list[str], says: str
) -> None:
    arguments = ["adopt", str(shipped("silero_vad.onnx")), "--shape", "input=1,576", "--yes"]
    arguments += ["--shape", "state=2,1,128", "--const", "sr=16000", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, [*arguments, *words])
    assert result.exit_code == 2 and says in result.stderr


@pytest.mark.slow
@pytest.mark.case("B8")
def test_a_sample_rate_that_nobody_gave_is_asked_for_with_one_that_works(tmp_path: Path) -> None:
    arguments = ["adopt", str(shipped("silero_vad.onnx")), "--shape", "input=1,576", "--yes"]
    arguments += ["--shape", "state=2,1,128", "--steps", "20", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "input 'sr' decides which branch" in result.stderr
    assert "--const sr=16000" in result.stderr
    result = CliRunner().invoke(main, [*arguments, "--range", "sr=16000:16000"])
    assert result.exit_code == 0, result.output
    receipt = Bundle.open(tmp_path / "b").manifest.verification
    assert receipt is not None and "only one branch of 'If_0' was seen" in receipt.notes[0]


def test_the_adopted_memory_is_one_kilobyte_and_the_file_is_untouched(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.state_bytes == 1024
    assert opened.manifest.constants[0].value == 16000
    raw = opened.read(opened.manifest.graphs[0].file)
    assert raw == shipped("silero_vad.onnx").read_bytes()


@pytest.fixture(scope="module")
def original(bundle: Path, speech: Callable[[str], tuple[np.ndarray, int]]) -> list[float]:
    with Session.open(bundle, engine="onnxruntime") as session:
        return heard_by(session, "output", *speech("two_cities.wav"))


def heard_by(session: Session, probability: str, samples: np.ndarray, rate: int) -> list[float]:
    """Speech probability of each window, the end of the one before in front of it."""
    joined = np.concatenate([np.zeros(CONTEXT, np.float32), at_16_khz(samples, rate)])
    starts = range(0, len(joined) - CONTEXT - WINDOW + 1, WINDOW)
    windows = (joined[start : start + CONTEXT + WINDOW][None] for start in starts)
    return [session.step(input=window)[probability].item() for window in windows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "probability", "gap"),
    [
        ("silero_vad_16k_op15.onnx", [*AXES, "--const", "sr=16000"], "output", 1e-6),
        ("silero_vad_op18_ifless.onnx", [*AXES, "--const", "sr=16000"], "output", 1e-5),
        ("silero_vad_openvino_16k.onnx", [], "output", 1e-6),
        ("silero_vad_16k_sequence.onnx", ["--dim", "sequence_length=1"], "speech_probs", 1e-6),
        # Half precision inside: now and then the file itself hears something else.
        ("silero_vad_half.onnx", AXES, "output", 1.0),
    ],
)
def test_other_forms_of_the_network_hear_what_the_first_one_hears(
    original: list[float],
    tmp_path: Path,
    speech: Callable[[str], tuple[np.ndarray, int]],
    name: str,
    options: list[str],
    probability: str,
    gap: float,
) -> None:
    arguments = ["adopt", str(shipped(name)), *options, "--yes", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    receipt = Bundle.open(tmp_path / "b").manifest.verification
    assert receipt is not None and receipt.max_output_error < 1e-5 > receipt.max_state_error
    with Session.open(tmp_path / "b") as session:
        assert session.manifest.state_bytes == 1024
        ours = heard_by(session, probability, *speech("two_cities.wav"))
    assert len(ours) == len(original) > 1300
    np.testing.assert_allclose(ours, original, atol=gap, rtol=0)
    assert np.mean((np.array(ours) > 0.5) == (np.array(original) > 0.5)) > 0.97
