"""How long a step of each of several bundles takes, measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from stategate.contract import Bundle
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session

ROUNDS = 20
BURST = 500


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of one bundle."""

    bundle: str  # where it is
    digest: str  # of the bundle
    p50_us: float  # median time of ``Session.step`` over all bursts
    ratio: float  # the same over that of the first bundle


def measure_pace(
    paths: Sequence[Path],
    rounds: int,
    burst: int,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Pace, ...]:
    """Step bundles through their golden inputs, each on its own state.

    They take turns in short bursts, so that a machine whose speed drifts slows all of them alike.

    Args:
        paths: The bundles; the first is what the others are held against.
        rounds: Bursts of each; one more, first, is not counted.
        burst: Steps in a burst.
        report: Called with the number of rounds done.

    Raises:
        EpisodeError: A bundle carries no golden episode.
    """
    with ExitStack() as opened:
        sides = []
        for path in paths:
            bundle = Bundle.open(path)
            golden = bundle.golden()
            if golden is None:
                raise EpisodeError("the bundle carries no golden episode", found=path)
            sides.append((opened.enter_context(Session.open(path)), list(golden)))
        times_ns = np.zeros((len(sides), rounds + 1, burst), dtype=np.int64)
        for i in range(rounds + 1):
            for (session, inputs), row in zip(sides, times_ns[:, i], strict=True):
                for t in range(burst):
                    feed = inputs[t % len(inputs)]
                    start = perf_counter_ns()
                    session.step(**feed)
                    row[t] = perf_counter_ns() - start
            report(i + 1)
        digests = [session.bundle_digest for session, _ in sides]
    p50_us = np.median(times_ns[:, 1:].reshape(len(sides), -1), axis=1) / 1000.0
    return tuple(
        Pace(str(path), digest, float(us), float(us / p50_us[0]))
        for path, digest, us in zip(paths, digests, p50_us, strict=True)
    )
