"""A cache that grows, beside the memory that does not: ``python -m lab memory cache``.

Both are stepped to the same lengths, each in a fresh process of its own, in turns. The session is
the deployed one, counting and checking; the cache is attention alone, in NumPy, of equal width.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import click
import numpy as np

from lab.evidence.records import write_rows
from lab.peers.growing import LENGTHS, Length, measure
from stategate.bench.record import times
from stategate.common.console import progress
from stategate.contract import Bundle, load_episode
from stategate.contract.durable import check_writable
from stategate.contract.errors import MeasurementError
from stategate.contract.specs import Record
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.session import Session
from stategate.targets.detect import detect

REPEATS, PROCESSES = 1000, 5


class CacheRow(Record, frozen=True):
    """What one of the two was after so many steps.

    Attributes:
        what: The constant memory in a session, or attention over a growing cache.
        steps: So many.
        bytes: What it holds by its shapes: states, or keys and values.
        resident_bytes: What its process has grown by since it began; median over the processes.
        p50_us: Median of the next steps; median over the processes.
        p50_us_range: Lowest and highest of the processes.
        processes: How many.
        machine: That it was measured on.
    """

    what: Literal["memory", "cache"]
    steps: int
    bytes: int
    resident_bytes: int
    p50_us: float
    p50_us_range: tuple[float, float]
    processes: int
    machine: str


def step_memory(bundle: str, episode: str, lengths: tuple[int, ...], repeats: int) -> list[Length]:
    """Step a session to each length, over and over through the episode."""
    inputs = load_episode(episode).inputs
    count = len(next(iter(inputs.values())))
    results, done = [], 0
    with Session.open(bundle) as session:
        session.step(**{name: array[0] for name, array in inputs.items()})
        session.reset()
        times(np.ones(9))
        empty = rss_bytes()
        for length in lengths:
            for at in range(done, length):
                session.step(**{name: array[at % count] for name, array in inputs.items()})
            resident_bytes = rss_bytes() - empty
            took = np.zeros(repeats)
            for i in range(repeats):
                fresh = {name: array[(length + i) % count] for name, array in inputs.items()}
                start = time.perf_counter_ns()
                session.step(**fresh)
                took[i] = (time.perf_counter_ns() - start) / 1000
            done = length + repeats
            summary = times(took)
            assert summary is not None  # repeats is positive
            results.append(Length(length, summary, resident_bytes))
    return results


def rows(
    what: Literal["memory", "cache"], bytes_at: dict[int, int], runs: list[list[Length]]
) -> list[CacheRow]:
    """One row a length, over all processes."""
    host, table = detect(), []
    for same in zip(*runs, strict=True):
        medians = [one.times.p50_us for one in same]
        table.append(
            CacheRow(
                what,
                same[0].steps,
                bytes_at[same[0].steps],
                int(statistics.median(one.resident_bytes for one in same)),
                statistics.median(medians),
                (min(medians), max(medians)),
                len(runs),
                f"{host.cpu or 'a processor that does not tell its name'}, {host.machine}",
            )
        )
    return table


@click.command("cache")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False))
@click.option("--episode", required=True, type=click.Path(exists=True), help="Recorded inputs.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/evidence/cache.json"),
    show_default=True,
)
def cache_command(bundle: str, episode: str, out: Path) -> None:
    """Step the memory of BUNDLE and a growing cache of equal width from 1,000 to 100,000 steps."""
    check_writable(out)
    manifest = Bundle.open(bundle).manifest
    per_step = manifest.model.kv_bytes_per_step
    if per_step is None:
        raise MeasurementError(
            "there is no cache to compare with",
            found=f"{bundle} names no kv_bytes_per_step",
            expected="a bundle of AURA-Mem or the delta family",
        )
    load_episode(episode).check(manifest.step)
    memories, caches = [], []
    with progress(PROCESSES, "processes") as report:
        for done in range(PROCESSES):
            # A fresh process each: what one has allocated shall not serve the next.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memories.append(
                    pool.submit(step_memory, bundle, episode, LENGTHS, REPEATS).result()
                )
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                caches.append(pool.submit(measure, per_step // 8, LENGTHS, REPEATS).result())
            report(done + 1)
    state_bytes = manifest.step.state_bytes
    results = rows("memory", dict.fromkeys(LENGTHS, state_bytes), memories)
    results += rows("cache", {length: length * per_step for length in LENGTHS}, caches)
    write_rows(out, results, lambda row: (row.what, row.steps))
    for row in results:
        click.echo(
            f"{row.what:<7} {row.steps:>8,} steps: {row.bytes:>11,} bytes, resident "
            f"{row.resident_bytes / 1e6:>6.2f} MB, p50 {row.p50_us:>8.1f} us "
            f"({row.p50_us_range[0]:.1f} to {row.p50_us_range[1]:.1f})"
        )
