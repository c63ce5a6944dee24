"""Attention over a key-value cache that grows, as wide as the memory: what a step costs at length.

Float32, one head, cache allocated beforehand and so at its best: a step appends one key and one
value and attends over all so far.
"""

from __future__ import annotations

import time

import numpy as np

from stategate.bench.record import Times
from stategate.bench.statistics import times

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)


def attend(cache: np.ndarray, values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """softmax(K q) V over ``(length, width)`` keys and values."""
    scores = cache @ query
    scores -= scores.max()
    np.exp(scores, out=scores)
    attended: np.ndarray = (scores @ values) / scores.sum()
    return attended


def measure(width: int, lengths: tuple[int, ...] = LENGTHS, repeats: int = 100) -> list[Times]:
    """Step times after so many steps.

    Args:
        width: Of keys and of values.
        lengths: Steps so far.
        repeats: Steps that are timed at each length.
    """
    rng = np.random.default_rng(0)
    rows = lengths[-1] + repeats
    keys, values = (rng.standard_normal((rows, width), np.float32) for _ in range(2))
    found = []
    for length in lengths:
        took = np.zeros(repeats)
        for i in range(repeats):
            fresh = rng.standard_normal((3, width), np.float32)
            start = time.perf_counter_ns()
            at = length + i
            keys[at], values[at] = fresh[0], fresh[1]
            attend(keys[: at + 1], values[: at + 1], fresh[2])
            took[i] = (time.perf_counter_ns() - start) / 1000
        summary = times(took)
        assert summary is not None  # repeats is positive
        found.append(summary)
    return found
