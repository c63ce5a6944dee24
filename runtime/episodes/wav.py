"""Recorded sound as an episode: windows of samples, so many samples apart."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stategate.contract import Episode
from stategate.contract.errors import EpisodeError
from stategate.contract.failures import failures
from stategate.contract.npz import refuse_too_large
from stategate.contract.reading import open_regular, printable

Samples = NDArray[np.float64]

SAMPLES = 1 << 27
"""Of one file, at its own rate and at the model's: two hours at 16 kHz. Each takes eight bytes, and
its spectrum as much again; a header may claim any rate, and so ask for any number of them."""


def wav_episode(
    path: Path,
    name: str,
    window: int,
    hop: int,
    channel: int = 0,
    rate_hz: int | None = None,
) -> Episode:
    """Cut a WAV file into steps.

    A rest at the end that fills no window is left out.

    Args:
        path: PCM of 16 or 32 bits.
        name: Input that takes a window, ``(1, window)`` float32 with samples in [-1, 1).
        window: Samples of a step.
        hop: Samples from the start of a step to that of the next; windows overlap if it is smaller.
        channel: Which one is heard.
        rate_hz: Samples per second that the model hears; those of the file if left out.
    """
    if min(window, hop, 1 if rate_hz is None else rate_hz) < 1:
        raise EpisodeError(
            "windows and rates are positive",
            found=f"windows of {window} every {hop}, {rate_hz} Hz",
        )
    try:
        with open_regular(path) as opened, wave.open(opened, "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if width > 0 and channels > 0:
                _check_samples(path, min(file.getnframes(), path.stat().st_size // width))
            raw = file.readframes(file.getnframes())
    except EpisodeError:
        raise
    except failures() as problem:  # the module wave lets struct.error, ValueError and more through
        raise EpisodeError(
            f"{path} cannot be read",
            found=f"{type(problem).__name__}: {problem}",
            expected="a WAV file of PCM samples",
        ) from problem
    if width not in (2, 4) or not 0 <= channel < channels or rate <= 0:
        raise EpisodeError(
            f"{path} cannot be heard",
            found=f"{8 * width} bits, {channels} channels, {rate} Hz; channel {channel} is wanted",
            expected="16 or 32 bits, and a channel that is there, counted from 0",
        )
    whole = len(raw) // (width * channels) * width * channels
    frames = np.frombuffer(raw[:whole], f"<i{width}").reshape(-1, channels)
    samples = frames[:, channel] / 2.0 ** (8 * width - 1)
    provenance = f"{printable(path.name)}, channel {channel} at {rate} Hz"
    _check_samples(path, round(len(samples) * (rate_hz or rate) / rate))
    if rate_hz not in (None, rate):
        samples, rate, provenance = (
            _resampled(samples, rate, rate_hz),
            rate_hz,
            f"{provenance} made {rate_hz} Hz",
        )
    if len(samples) < window:
        raise EpisodeError(
            f"{path} is shorter than a window", found=f"{len(samples)} samples", expected=window
        )
    size = ((len(samples) - window) // hop + 1) * window * 4
    refuse_too_large(
        f"the sound of {path} in windows", size, "take a larger --hop, or cut the file"
    )
    samples = samples.astype(np.float32)
    steps = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    return Episode(
        {name: steps[:, None, :].copy()},
        rate_hz=rate / hop,
        provenance=f"{provenance}, windows of {window} every {hop}",
    )


def _check_samples(path: Path, samples: int) -> None:
    if samples > SAMPLES:
        raise EpisodeError(
            f"{path} is too long to be heard at once",
            found=f"{samples:,} samples",
            expected=f"at most {SAMPLES:,}",
            remedy="cut it into several files, or take a lower --rate-hz",
        )


def _resampled(samples: Samples, rate: int, target_rate: int) -> Samples:
    """Sound at another rate: its spectrum, cut or filled up where the new rate's ends."""
    count = round(len(samples) * target_rate / rate)
    if count == 0:
        return samples[:0]
    return np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * (target_rate / rate)
