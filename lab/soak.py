"""A million steps: does anything grow, does anything slow down."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import numpy as np

from lab.overhead import bound_calls
from stategate.cli.options import bundle_verb, episode_option, out_option, steps_option
from stategate.cli.show import show
from stategate.common.console import progress
from stategate.common.statistics import slope_per_million
from stategate.contract import Budget, Bundle, Episode
from stategate.contract.durable import check_writable
from stategate.contract.episodes import load_stream
from stategate.contract.errors import EpisodeError
from stategate.runtime import Session
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.check.full_pool import begun

WINDOW = 10_000
_WARM = 20_000  # engines and allocators settle in their first steps
_TRACED = 5_000
_REPORTS = 200


@dataclass(frozen=True, slots=True)
class Soak:
    """What a long run did to its process."""

    model: str  # name of the model
    bundle_sha256: str  # digest of the bundle
    engine: str  # engine and version
    steps: int  # steps in all
    writes: int  # of which writes
    state_bytes: int  # one bank of all states
    warm_steps: int  # steps before the first look at the memory
    rss_growth_bytes: int  # resident memory at the end, less that after ``warm_steps``
    # samples, of about 200, at which resident memory had changed: one means a single
    # allocation, many mean growth
    rss_jumps: int
    # Theil-Sen slope over those samples, which a single jump does not tilt; None where they
    # span too few steps
    rss_slope_bytes_per_million_steps: float | None
    # growth of ONNX Runtime alone over as many steps, with bound buffers, in a process of its
    # own: what is not stategate's
    engine_rss_growth_bytes: int
    empty_rss_growth_bytes: int  # growth over a loop that steps nothing, in the same process
    python_growth_bytes: int  # Python and NumPy memory gained over 5,000 traced steps
    window: int  # steps of each window of the two figures below
    p99_first_us: float  # 99th percentile of the first window after warming up
    p99_last_us: float  # 99th percentile of the last window


def run_soak(
    path: Path, episode: Episode | None, steps: int, report: Callable[[int], None]
) -> Soak:
    """Step a bundle for a long time.

    Args:
        path: The bundle.
        episode: Inputs, gone through again and again; the golden episode when None.
        steps: How many, 40,000 or more.
        report: Called with the number of steps done, about two hundred times.

    Raises:
        EpisodeError: The bundle carries no golden episode, or the episode does not fit.
    """
    bundle = Bundle.open(path)
    recorded = episode or bundle.golden()
    if recorded is None:
        raise EpisodeError("the bundle carries no golden episode", found=path)
    recorded.check(bundle.manifest.step)
    inputs = list(recorded)
    elapsed_ns = np.zeros(WINDOW, dtype=np.int64)
    elapsed_ns.fill(1)  # touch the pages now, so that they do not count as growth
    # A budget that never binds: the governor is on, as it would be on a robot.
    with begun(Session.open(path, budget=Budget(writes_per_1000_steps=1000))) as session:

        def stretch(first: int, last: int) -> None:
            """Steps ``first`` to ``last``, the last ``WINDOW`` of them timed."""
            for t in range(first, last):
                start = perf_counter_ns()
                session.step(**inputs[t % len(inputs)])
                elapsed_ns[t % WINDOW] = perf_counter_ns() - start

        stretch(0, _WARM)
        stretch(_WARM, _WARM + WINDOW)
        p99_first = float(np.percentile(elapsed_ns, 99)) / 1000.0
        done, end = _WARM + WINDOW, steps - _TRACED
        gc.collect()
        each = max(1, (end - done) // _REPORTS)
        samples = [rss_bytes()]
        for first in range(done, end, each):
            stretch(first, min(first + each, end))
            samples.append(rss_bytes())
            report(min(first + each, end))
        p99_last = float(np.percentile(elapsed_ns, 99)) / 1000.0
        python_growth = _traced(session, inputs)
        report(steps)
        ledger = session.ledger
        engine = session.engine_name
    return Soak(
        model=bundle.manifest.model.name,
        bundle_sha256=bundle.digest,
        engine=engine,
        steps=ledger.steps,
        writes=ledger.writes,
        state_bytes=bundle.manifest.state_bytes,
        warm_steps=done,
        rss_growth_bytes=samples[-1] - samples[0],
        rss_jumps=int(np.count_nonzero(np.diff(samples))),
        rss_slope_bytes_per_million_steps=slope_per_million(
            each * np.arange(float(len(samples))), np.array(samples, float)
        ),
        engine_rss_growth_bytes=_engine_growth(path, recorded, end),
        empty_rss_growth_bytes=_empty_loop(end - done, elapsed_ns),
        python_growth_bytes=python_growth,
        window=WINDOW,
        p99_first_us=p99_first,
        p99_last_us=p99_last,
    )


def _traced(session: Session, inputs: list[dict[str, Any]]) -> int:
    """Memory that Python and NumPy gained over the last steps."""
    tracemalloc.start()
    try:
        session.step(**inputs[0])
        before = tracemalloc.get_traced_memory()[0]
        for t in range(1, _TRACED):
            session.step(**inputs[t % len(inputs)])
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def _engine_growth(path: Path, episode: Episode, steps: int) -> int:
    """Growth of bare ONNX Runtime from the same step on, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_bare_growth, path, episode.inputs, steps).result()


def _bare_growth(path: Path, arrays: dict[str, Any], steps: int) -> int:
    call, _ = bound_calls(Bundle.open(path))
    inputs = list(Episode(arrays))
    before = 0
    for t in range(steps):
        if t == _WARM + WINDOW:
            before = rss_bytes()
        call(inputs[t % len(inputs)])
    return rss_bytes() - before


def _empty_loop(steps: int, elapsed_ns: np.ndarray) -> int:
    """Growth of a loop that does all of the above but stepping."""
    before = rss_bytes()
    for t in range(steps):
        start = perf_counter_ns()
        elapsed_ns[t % WINDOW] = perf_counter_ns() - start
    return rss_bytes() - before


@bundle_verb()
@episode_option("; the golden episode if left out.", "episode_path")
@steps_option("Steps.", 1_000_000, click.IntRange(min=40_000))
@out_option("Folder for soak.json.", required=False)
def soak(bundle: Path, episode_path: Path | None, steps: int, out: Path | None) -> None:
    """Step BUNDLE for a long time, and see whether its memory or its pace changes.

    \b
    Example:
      python -m lab soak build/aura --steps 1000000 --out build/bench
    """
    path = out and out / "soak.json"
    if path:
        check_writable(path)

    episode = load_stream(episode_path, steps) if episode_path else None
    with progress(steps, "soaking") as report:
        result = run_soak(bundle, episode, steps, report)
    show(result, _soaked(result), path)


def _soaked(result: Soak) -> Iterator[str]:
    slope = result.rss_slope_bytes_per_million_steps
    change = "too few for a slope" if slope is None else f"{slope:+,.0f} bytes per million steps"
    yield f"{result.steps:,} steps of {result.model}, {result.writes:,} writes"
    yield (
        f"resident memory grew by {result.rss_growth_bytes:,} bytes after the first "
        f"{result.warm_steps:,} steps, in {result.rss_jumps} jumps; {change}"
    )
    yield (
        f"as long a loop of ONNX Runtime alone grew by {result.engine_rss_growth_bytes:,} bytes, "
        f"an empty one by {result.empty_rss_growth_bytes:,}"
    )
    yield f"Python objects grew by {result.python_growth_bytes:,} bytes"
    yield (
        f"p99 of the first {result.window:,} steps {result.p99_first_us:.1f} us, "
        f"of the last {result.p99_last_us:.1f} us"
    )
