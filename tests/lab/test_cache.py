"""A cache that grows beside a memory that does not."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from lab.evidence.memory.cache import rows, step_memory
from lab.evidence.memory.commands import memory
from lab.peers.growing import measure
from stategate.contract import Episode


def test_the_cache_becomes_resident_as_it_grows() -> None:
    # In a process of its own: memory that another test gave back would be taken again.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        small, large = pool.submit(measure, 256, (1_000, 20_000), repeats=3).result()
    written = 2 * 256 * 4 * (20_000 - 1_000)
    assert written * 0.9 < large.resident_bytes - small.resident_bytes < written * 1.2


def test_the_session_is_stepped_to_the_same_lengths(aura_bundle: Path, tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((8, 1, 64)).astype(np.float32)
    (tmp_path / "e.npz").write_bytes(Episode({"z": z}).to_bytes())
    found = step_memory(str(aura_bundle), str(tmp_path / "e.npz"), (5, 40), 3)
    assert [(one.steps, one.times.count) for one in found] == [(5, 3), (40, 3)]
    (first, second) = rows("memory", {5: 4224, 40: 4224}, [found, found[:]])
    assert (first.steps, second.bytes, second.processes) == (5, 4224, 2)
    assert second.p50_us_range == (second.p50_us, second.p50_us)


def test_a_bundle_that_replaces_no_cache_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "e.npz").write_bytes(Episode({"x": np.zeros((2, 1, 4), np.float32)}).to_bytes())
    done = CliRunner().invoke(
        memory,
        [
            "cache",
            str(tiny_bundle),
            "--episode",
            str(tmp_path / "e.npz"),
            "--out",
            str(tmp_path / "o"),
        ],
    )
    assert done.exit_code in (1, 2) and "no cache to compare" in done.output
