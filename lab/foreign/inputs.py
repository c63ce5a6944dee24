"""What the files are stepped through: speech where they listen, tokens where they read."""

from __future__ import annotations

import wave
from importlib.metadata import files

import numpy as np
from numpy.typing import NDArray

from stategate.contract import Episode, TensorSpec
from stategate.contract.errors import ResultError

Floats = NDArray[np.float32]
RATE_HZ = 16_000
_HOP = RATE_HZ // 100


def episode(inputs: tuple[TensorSpec, ...], how: dict[str, str], steps: int) -> Episode:
    """Inputs of every step, the same in each run.

    Args:
        inputs: What a step takes.
        how: By input: ``speech`` for samples, ``bands`` for log power of speech in frequency bands,
            ``tokens:N`` for integers below N, ``ones``, or ``noise``, which is also what an input
            that is not named gets.
        steps: How many.
    """
    return Episode({t.name: _drawn(t, how.get(t.name, "noise"), steps) for t in inputs})


def _drawn(spec: TensorSpec, how: str, steps: int) -> NDArray[np.generic]:
    kind, _, count = how.partition(":")
    rng = np.random.default_rng(17)
    shape = (steps, *spec.shape)
    numbers: NDArray[np.generic]
    if kind == "speech":
        numbers = np.resize(_speech(), shape)
    elif kind == "bands":
        numbers = _bands(int(np.prod(spec.shape)), steps).reshape(shape)
    elif kind == "tokens":
        numbers = rng.integers(0, int(count), shape)
    elif kind == "ones":
        numbers = np.ones(shape)
    elif kind == "noise":
        numbers = rng.standard_normal(shape)
    else:
        raise ResultError("no such kind of input", found=f"{spec.name} = {how!r}")
    return numbers.astype(spec.dtype)


def _speech() -> Floats:
    """Ten seconds of a recorded voice, in [-1, 1], from where it speaks."""
    recordings = [f for f in files("moonshine-voice") or [] if f.name == "beckett.wav"]
    with wave.open(str(recordings[0].locate())) as file:
        if file.getframerate() != RATE_HZ:
            raise ResultError("the recording has another rate", found=file.getframerate())
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return (raw[RATE_HZ // 2 :] / 32768.0).astype(np.float32)


def _bands(count: int, steps: int) -> Floats:
    """Log power ``(steps, count)`` of speech, a frame every 10 ms.

    No package's own features. Like those, it is smooth in time, and larger where somebody speaks.
    """
    size = max(512, 2 * count)
    speech = np.resize(_speech(), _HOP * steps + size)
    frames = np.stack([speech[_HOP * i : _HOP * i + size] for i in range(steps)])
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2
    edges = np.linspace(0, power.shape[1], count + 1).astype(int)[:-1]
    return np.asarray(np.log10(np.add.reduceat(power, edges, axis=1) + 1e-6), np.float32)
