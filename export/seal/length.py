"""How long writes are deferred, where the caller leaves that to a measurement or to the bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import cycle

from stategate.common.build_time import may_measure
from stategate.contract import Bundle
from stategate.contract.errors import ExportError
from stategate.models.memories.matrix import Ring
from stategate.runtime.check.full_pool import open_stepper
from stategate.runtime.trust.code import trials

WISHES = ("auto", "fewest-bytes")
_TRIED = (8, 16, 32)
_LONGEST = 64  # of fewest-bytes: the ring grows, and what is saved hardly does
_NARROW = 128  # in narrower heads the rows weigh more than the matrix: never chosen by itself
_BURST, _BURSTS = 64, 50  # whole turns of every length


def choose_length(
    wish: str,
    rings: tuple[Ring, ...],
    trial: Callable[[int | None], Bundle],
) -> tuple[int | None, str]:
    """Writes until a fold, None for the plain form, and why; a trial is a bundle of a length."""
    row = sum(4 * ring.heads * ring.width for ring in rings)
    matrices = sum(4 * ring.heads * ring.value * sum(ring.parts.values()) for ring in rings)

    def nbytes(length: int | None) -> float:
        return matrices if length is None else (row * (length - 1) + matrices) / length

    if wish == "fewest-bytes":
        # A longer turn is fewer bytes, as long as a ring is no larger than what it waits for; of
        # heads of two or three numbers, a row is more than the matrix.
        fitting = [n for n in (*_TRIED, _LONGEST) if row * (n - 1) <= matrices]
        longest = max(fitting, default=_TRIED[0])
        length = min((None, longest), key=nbytes)
        return length, f"{wish}: {_words(nbytes, (None, longest))}"
    narrowest = min(min(ring.value, *ring.parts.values()) for ring in rings)
    if narrowest < _NARROW:
        return None, (
            f"auto: not deferred, because heads of {narrowest} are narrower than {_NARROW}; "
            "--defer fewest-bytes or a number defers them all the same"
        )
    if not may_measure():
        raise ExportError(
            "--defer auto is measured, and SOURCE_DATE_EPOCH asks for the same bytes every time",
            remedy="--defer 16",
        )
    with trials():
        times = _times({n: trial(n) for n in (None, *_TRIED)})
    best = min(times, key=lambda n: times[n])
    chosen = "plain" if best is None else f"a fold in {best} writes"
    return best, f"auto, {chosen}: {_words(nbytes, tuple(times), times)}"


def _times(bundles: dict[int | None, Bundle]) -> dict[int | None, float]:
    """Microseconds of a step, the best mean of many bursts of golden inputs that take turns."""
    episode = bundles[None].golden()
    assert episode is not None  # every bundle that was just made has one
    best = dict.fromkeys(bundles, float("inf"))
    with ExitStack() as stack:
        sessions = {
            n: stack.enter_context(closing(open_stepper(b.path))) for n, b in bundles.items()
        }
        inputs = [row for row, _ in zip(cycle(episode), range(_BURST), strict=False)]
        for _ in range(_BURSTS):
            for n, session in sessions.items():
                start = time.perf_counter_ns()
                for row in inputs:
                    session.step(**row)
                took = (time.perf_counter_ns() - start) / 1e3 / len(inputs)
                best[n] = min(best[n], took)
    return best


def _words(
    nbytes: Callable[[int | None], float],
    lengths: tuple[int | None, ...],
    times: dict[int | None, float] | None = None,
) -> str:
    return ", ".join(
        f"{'plain' if n is None else f'a fold in {n} writes'} "
        + (f"{times[n]:.3g} us a step and " if times else "")
        + f"{nbytes(n):,.0f} bytes a write"
        for n in lengths
    )
