"""Sound files of a stranger: any bytes give an episode or a sentence, and none much memory."""

from __future__ import annotations

import io
import os
import resource
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract.errors import EpisodeError
from stategate.runtime.episodes.wav import SAMPLES, wav_episode


def sound(samples: int = 2000, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate, 0, "NONE", ""))
        out.writeframes(np.arange(samples * channels, dtype="<i2").tobytes())
    return file.getvalue()


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """No allocation of this process may go beyond what it has by more than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.case("E13")
@given(st.data())
def test_a_damaged_wav_is_an_episode_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(sound(200))
    for at in data.draw(st.lists(st.integers(0, 60), max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.wav"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.binary(max_size=9)))
    try:
        episode = wav_episode(path, "x", 16, 16)
    except EpisodeError:
        return
    assert episode.steps > 0 and np.isfinite(episode.inputs["x"]).all()


@pytest.mark.case("E13")
@pytest.mark.parametrize(
    ("at", "form", "value"),
    [(22, "<H", 0), (24, "<I", 0), (34, "<H", 0), (34, "<H", 24), (20, "<H", 3), (20, "<H", 65534)],
    ids=["0 channels", "0 Hz", "0 bits", "24 bits", "floats", "extensible"],
)
def test_a_header_that_says_nothing_that_can_be_heard_is_a_sentence(
    tmp_path: Path, at: int, form: str, value: int
) -> None:
    raw = bytearray(sound())
    struct.pack_into(form, raw, at, value)
    (tmp_path / "a.wav").write_bytes(raw)
    with pytest.raises(EpisodeError, match=r"cannot be (read|heard)"):
        wav_episode(tmp_path / "a.wav", "x", 16, 16)


@pytest.mark.case("E13")
@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 1])
def test_a_chunk_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path, size: int) -> None:
    raw = bytearray(sound())
    struct.pack_into("<I", raw, 40, size)
    (tmp_path / "a.wav").write_bytes(raw)
    with memory_limit(256 * 2**20), suppress(EpisodeError):
        wav_episode(tmp_path / "a.wav", "x", 16, 16)


@pytest.mark.case("E13")
def test_a_rate_that_would_make_a_recording_gigantic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slow.wav"
    path.write_bytes(sound(samples=16_000, rate=1))
    with memory_limit(256 * 2**20), pytest.raises(EpisodeError, match=f"{SAMPLES:,}"):
        wav_episode(path, "x", 512, 512, rate_hz=768_000)


@pytest.mark.case("E13")
def test_windows_that_overlap_into_more_than_an_episode_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(sound(samples=300_000))
    with memory_limit(256 * 2**20), pytest.raises(EpisodeError, match="--hop"):
        wav_episode(path, "x", 100_000, 1)


@pytest.mark.case("E11")
@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_no_sound(tmp_path: Path, plant: object) -> None:
    plant(tmp_path / "a.wav")  # type: ignore[operator]
    with pytest.raises(EpisodeError, match=r"pipe|folder"):
        wav_episode(tmp_path / "a.wav", "x", 16, 16)


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"hop": 0}, {"hop": -1}, {"rate_hz": 0}, {"rate_hz": -5}]
)
def test_sizes_and_rates_that_are_not_positive_are_refused(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    (tmp_path / "a.wav").write_bytes(sound())
    with pytest.raises(EpisodeError, match="positive"):
        wav_episode(tmp_path / "a.wav", "x", **{"window": 16, "hop": 16, **wrong})
