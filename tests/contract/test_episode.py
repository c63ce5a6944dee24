from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stategate.contract import Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import EpisodeError

STEP = StepSpec((TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 3)),), (StateSpec("s", (1,)),))


def inputs(steps: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((steps, 1, 2), np.float32)}


@given(npst.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(1), st.just(2))))
def test_an_episode_survives_its_file(array: np.ndarray) -> None:
    episode = Episode({"x": array}, {"y": np.arange(len(array)) - 1})
    again = Episode.load(episode.to_bytes())
    assert again.inputs["x"].tobytes() == array.tobytes()
    assert (again.labels["y"] == episode.labels["y"]).all()
    assert again.to_bytes() == episode.to_bytes()


def test_a_step_of_a_scalar_input_is_an_array() -> None:
    episode = Episode({"sr": np.full(3, 16000)})
    assert all(isinstance(step["sr"], np.ndarray) for step in episode)


@pytest.mark.parametrize(
    ("episode", "finding"),
    [
        (Episode({"z": np.zeros((3, 1, 2), np.float32)}), "inputs are not the model's"),
        (Episode({}), "inputs are not the model's"),
        (Episode(inputs(0)), "0 steps"),
        (Episode({"x": np.zeros((3, 2), np.float32)}), "does not fit"),
        (Episode({"x": np.zeros((3, 1, 2), np.float64)}), "float64"),
        (Episode(inputs(3), {"z": np.zeros(3, int)}), "labels an output"),
        (Episode(inputs(3), {"y": np.zeros(2, int)}), "differ in length"),
        (Episode(inputs(3), {"y": np.zeros((3, 1), int)}), "no indices"),
        (Episode(inputs(3), {"y": np.full(3, 3)}), "no indices"),
        (Episode(inputs(3), {"y": np.zeros(3)}), "no indices"),
        (Episode({"x": np.array(1.0, np.float32)}), "0 steps"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(episode: Episode, finding: str) -> None:
    with pytest.raises(EpisodeError, match=finding):
        episode.check(STEP)


def test_a_file_that_is_no_episode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episode.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(path)
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(tmp_path / "nowhere.npz")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(tmp_path / "plain.npy")
    np.savez(path, **{"input.x": np.array(["text"])})
    with pytest.raises(EpisodeError, match="no number"):
        Episode.load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(EpisodeError, match="no episode has"):
        Episode.load(path)


def test_a_pickle_is_never_loaded() -> None:
    file = io.BytesIO()
    np.savez(file, **{"input.x": np.array([{"evil": 1}], dtype=object)})
    with pytest.raises(EpisodeError, match="cannot be read"):
        Episode.load(file.getvalue())


@given(st.integers(0, 400))
def test_a_truncated_file_is_refused(length: int) -> None:
    raw = Episode(inputs(3)).to_bytes()
    if length < len(raw):
        with pytest.raises(EpisodeError):
            Episode.load(raw[:length])


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_never_raises_anything_but_our_own_error(position: int, bit: int) -> None:
    raw = bytearray(Episode(inputs(3)).to_bytes())
    raw[position % len(raw)] ^= 1 << bit
    try:
        Episode.load(bytes(raw)).check(STEP)
    except EpisodeError:
        return


def test_objects_are_not_written() -> None:
    with pytest.raises(EpisodeError, match="numbers only"):
        Episode({"x": np.array([{}], dtype=object)}).to_bytes()


def test_an_episode_is_cut_or_repeated_to_a_length() -> None:
    episode = Episode({"x": np.arange(6, dtype=np.float32).reshape(3, 1, 2)}, {"y": np.arange(3)})
    assert episode.resized(2).labels["y"].tolist() == [0, 1]
    assert episode.resized(7).labels["y"].tolist() == [0, 1, 2, 0, 1, 2, 0]
