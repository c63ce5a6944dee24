"""The house's one timing loop: calls take turns, and every single call is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TimedCall:
    """One contender of a measurement."""

    call: Callable[[Any], object]  # takes one element of ``feeds``
    # its arguments, one a call, gone through from the first in every burst
    feeds: Sequence[Any] = (None,)
    prepare: Callable[[], object] = lambda: None  # called before every burst, off the clock


def time_in_turns(
    calls: Mapping[str, TimedCall],
    *,
    rounds: int,
    burst: int = 1,
    warm_up: int = 1,
    seconds: float = 0.0,
    report: Callable[[int], None] = lambda rounds: None,
) -> dict[str, NDArray[np.int64]]:
    """Measure calls in short bursts, one after the other, round after round.

    A machine whose speed drifts slows all of them alike, so that their ratios hold.

    Args:
        calls: The contenders, by name.
        rounds: Bursts of each that are counted, or the fewest of them where ``seconds`` is given.
        burst: Calls in a burst.
        warm_up: Rounds before those, which are run and not counted.
        seconds: Rounds are added until this much time has passed.
        report: Called after every round with the number of rounds done, warm-up included.

    Returns:
        Nanoseconds of every counted call, ``(rounds, burst)``, by name.
    """
    bursts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in calls}
    end, done = perf_counter() + seconds, 0
    while done < warm_up + rounds or perf_counter() < end:
        for name, timed in calls.items():
            call, feeds, count = timed.call, timed.feeds, len(timed.feeds)
            spans_ns = np.zeros(burst, np.int64)
            timed.prepare()
            for i in range(burst):
                feed = feeds[i % count]  # off the clock, as is storing the result
                start = perf_counter_ns()
                call(feed)
                spans_ns[i] = perf_counter_ns() - start
            if done >= warm_up:
                bursts[name].append(spans_ns)
        done += 1
        report(done)
    return {name: np.stack(spans) for name, spans in bursts.items()}
