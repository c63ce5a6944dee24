"""``python -m lab pace``: steps of several bundles, timed in turns and in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stategate.cli.options import COUNT, bundles_argument, option, out_option, verb
from stategate.cli.show import show
from stategate.common.console import progress
from stategate.common.timing import TimedCall, time_in_turns
from stategate.contract import Bundle
from stategate.contract.durable import check_writable
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.full_pool import begun

Step = Callable[[dict[str, Any]], object]
Report = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of one bundle."""

    bundle: str  # where it is
    digest: str  # of the bundle
    p50_us: float  # median time of `Session.step` over all bursts
    ratio: float  # the same over that of the first bundle


def measure_pace(
    paths: Sequence[Path], rounds: int, burst: int, report: Report = lambda _: None
) -> tuple[Pace, ...]:
    """Step bundles through their golden inputs, each on its own state.

    Args:
        paths: The bundles; the first is what the others are compared with.
        rounds: Bursts of each; one more, first, is not counted.
        burst: Steps in a burst.
        report: Called with the number of rounds done.

    Raises:
        EpisodeError: A bundle carries no golden episode.
    """
    with ExitStack() as opened:
        sessions = [begun(opened.enter_context(Session.open(path))) for path in paths]
        calls = {
            str(i): TimedCall(stepper(session), golden_inputs(Bundle.open(path)))
            for i, (session, path) in enumerate(zip(sessions, paths, strict=True))
        }
        spans_ns = time_in_turns(calls, rounds=rounds, burst=burst, report=report)
        digests = [session.bundle_digest for session in sessions]
    p50_us = [float(np.median(spans)) / 1000 for spans in spans_ns.values()]
    return tuple(
        Pace(str(path), digest, us, us / p50_us[0])
        for path, digest, us in zip(paths, digests, p50_us, strict=True)
    )


def golden_inputs(bundle: Bundle) -> list[dict[str, Array]]:
    """Inputs of the golden episode, a dict a step; `EpisodeError` where there is none."""
    golden = bundle.golden()
    if golden is None:
        raise EpisodeError("the bundle carries no golden episode", found=bundle.path)
    return list(golden)


def stepper(session: Session) -> Step:
    """A step of the session as a function of one dict."""
    return lambda feed: session.step(**feed)


@verb()
@bundles_argument
@option("--rounds", type=COUNT, default=20, help="Bursts of each.")
@option("--burst", type=COUNT, default=500, help="Steps in a burst.")
@out_option("The list (.json).", required=False)
def pace(bundles: tuple[Path, ...], rounds: int, burst: int, out: Path | None) -> None:
    """Time a step of each of BUNDLES, in turns and in one run, against the first.

    \b
    Example:
      python -m lab pace build/float build/int8
    """
    if out is not None:
        check_writable(out)

    with progress(rounds + 1, "measuring") as report:
        result = measure_pace(bundles, rounds, burst, report)
    lines = (f"{p.bundle}: p50 {p.p50_us:.1f} us, {p.ratio:.2f} times the first" for p in result)
    show(result, lines, out)
