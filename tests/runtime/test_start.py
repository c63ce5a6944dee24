"""Episodes that start from given states: whoever steps them begins with these, or refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode, EpisodeSet, load_episode
from stategate.contract.errors import EpisodeError
from stategate.models.lifting.lift import lift
from stategate.runtime import Session
from stategate.runtime.episodes.recorder import Recorder
from stategate.runtime.episodes.run import run_episode

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 1, 4)).astype(np.float32)
H = np.full((1, 4), 0.75, np.float32)
EPISODE = Episode({"x": X}, start={"h": H})


def stepped(path: Path, episode: Episode) -> bytes:
    with Session.open(path) as session:
        session.load_state({"h": H, "count": np.zeros((1, 1), np.float32)})
        for inputs in episode:
            session.step(**inputs)
        return session.state("h").tobytes()


def test_a_file_keeps_the_states_that_it_starts_from(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(EPISODE.to_bytes())
    for read in (Episode.load(file), load_episode(file), load_episode(file, 3)):
        assert read.start["h"].tobytes() == H.tobytes()
    assert EPISODE.resized(30).start == EPISODE.start
    assert EpisodeSet.open(file).files[0].start == ("start.h",)
    with pytest.raises(EpisodeError, match="cannot begin with them"):
        next(EpisodeSet.open(file).files[0].blocks())
    (tmp_path / "0.npz").write_bytes(Episode({"x": X}).to_bytes())
    with pytest.raises(EpisodeError, match="a.npz starts from given states"):
        load_episode(tmp_path)


def test_a_run_and_a_recording_start_from_them(tiny_bundle: Path, tmp_path: Path) -> None:
    right = stepped(tiny_bundle, EPISODE)
    with Session.open(tiny_bundle) as session:
        assert run_episode(session, EPISODE).ledger.resets > 0
        assert session.state("h").tobytes() == right
    file, out = tmp_path / "a.npz", tmp_path / "recorded"
    file.write_bytes(EPISODE.to_bytes())
    done = CliRunner().invoke(
        main, ["episodes", "record", str(tiny_bundle), "--episode", str(file), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    again = load_episode(out)
    assert again.start["h"].tobytes() == H.tobytes() and stepped(tiny_bundle, again) == right


def test_a_recorder_starts_a_file_where_states_are_loaded(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with Session.open(tiny_bundle) as session, Recorder(session, tmp_path) as recorder:
        recorder.step(x=X[0])
        recorder.load_state({"h": H, "count": np.ones((1, 1), np.float32)})
        for x in X:
            recorder.step(x=x)
        right = session.state("h").tobytes()
    first, second = (load_episode(file) for file in sorted(tmp_path.iterdir()))
    assert (first.steps, first.start) == (1, {}) and set(second.start) == {"h", "count"}
    assert stepped(tiny_bundle, second) == right


@pytest.mark.slow
def test_the_check_of_an_export_and_its_replay_start_from_them(
    tiny: torch.nn.Module, tmp_path: Path
) -> None:
    bundle = stategate.make(tiny, tmp_path / "bundle", episode=EPISODE, steps=12)
    golden = bundle.golden()
    assert golden is not None and golden.start["h"].tobytes() == H.tobytes()
    assert golden.states["h"].tobytes() != H.tobytes()
    assert stategate.verify(bundle).passed
    started = stategate.make(tiny, tmp_path / "plain", episode=Episode({"x": X}), steps=12)
    assert started.golden().outputs["y"].tobytes() != golden.outputs["y"].tobytes()  # type: ignore[union-attr]


def test_a_module_of_ones_own_and_its_drift_start_from_them(tmp_path: Path) -> None:
    class Leaky(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("h", torch.zeros(1, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.h = 0.9 * self.h + x
            return self.h * 2.0

    model = lift(Leaky(), {"x": torch.zeros(1, 4)}, states=["h"])
    bundle = stategate.make(model, tmp_path / "bundle", episode=EPISODE, steps=12)
    right = 0.9 * H + X[0]
    assert np.allclose(bundle.golden().outputs["output"][0], 2 * right, atol=1e-6)  # type: ignore[union-attr]
    with Session.open(bundle.path) as session:
        EPISODE.begin(session, ["h"])
        assert np.allclose(session.step(x=X[0])["output"], 2 * right, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"c": H}, "a state 'c' that the model cannot have"),
        ({"h": H[0]}, "float32 .4."),
        ({"h": H.astype(np.float64)}, "float64"),
        ({"h": H * np.nan}, "not finite"),
    ],
)
def test_states_that_the_model_cannot_have_are_refused(
    tiny_bundle: Path, start: dict[str, np.ndarray], message: str
) -> None:
    with Session.open(tiny_bundle) as session:
        with pytest.raises(EpisodeError, match=message):
            run_episode(session, Episode({"x": X}, start=start))
        assert session.ledger.steps == 0


def test_who_cannot_begin_with_them_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="cannot begin with them"):
        EPISODE.check(Bundle.open(tiny_bundle).manifest.step)
    with pytest.raises(EpisodeError):
        stategate.measure_ranges(tiny_bundle, EPISODE)
