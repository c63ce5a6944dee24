"""Attention over a key-value cache that grows, as wide as the memory: what a step costs at length.

Float32, one head, addresses reserved beforehand and so at its best: a step appends one key and one
value and attends over all so far. Memory becomes resident as the rows are written.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from stategate.bench.record import Times, times
from stategate.runtime.base.process import rss_bytes

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)


class Length(NamedTuple):
    """What was found after so many steps.

    Attributes:
        steps: So many.
        times: Of the steps after them.
        resident_bytes: What the process has grown by since the cache was empty.
    """

    steps: int
    times: Times
    resident_bytes: int


def attend(cache: np.ndarray, values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """softmax(K q) V over ``(length, width)`` keys and values."""
    scores = cache @ query
    scores -= scores.max()
    np.exp(scores, out=scores)
    attended: np.ndarray = (scores @ values) / scores.sum()
    return attended


def measure(width: int, lengths: tuple[int, ...] = LENGTHS, repeats: int = 100) -> list[Length]:
    """Step times and memory after so many steps.

    Args:
        width: Of keys and of values.
        lengths: Steps so far, rising.
        repeats: Steps that are timed at each length.
    """
    rng = np.random.default_rng(0)
    rows = lengths[-1] + repeats
    keys, values = (np.empty((rows, width), np.float32) for _ in range(2))
    warm = np.zeros((9, width), np.float32)
    attend(warm, warm, warm[0])
    times(np.ones(9))  # whatever the first call allocates is none of the cache's
    empty, filled, results = rss_bytes(), 0, []
    for length in lengths:
        for at in range(filled, length):
            keys[at], values[at] = rng.standard_normal((2, width), np.float32)
        resident_bytes = rss_bytes() - empty
        took = np.zeros(repeats)
        for i in range(repeats):
            fresh = rng.standard_normal((3, width), np.float32)
            start = time.perf_counter_ns()
            at = length + i
            keys[at], values[at] = fresh[0], fresh[1]
            attend(keys[: at + 1], values[: at + 1], fresh[2])
            took[i] = (time.perf_counter_ns() - start) / 1000
        filled = length + repeats
        summary = times(took)
        assert summary is not None  # repeats is positive
        results.append(Length(length, summary, resident_bytes))
    return results
