"""Measurements whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stategate.bench.record import (
    Allocations,
    BenchResult,
    ColdStart,
    Machine,
    Memory,
    Options,
    Rounds,
    Subject,
    times,
)


def _drifting(rng: np.random.Generator, count: int) -> np.ndarray:
    """How slow a shared machine is in each of ``count`` bursts: slow for a while, then fast."""
    noise = rng.normal(0, 0.02, count)
    wander = np.zeros(count)
    for i in range(1, count):
        wander[i] = 0.9 * wander[i - 1] + noise[i]
    return np.exp(wander)


def _result(step_us: float, seed: int, machine: float = 1.0, count: int = 120) -> BenchResult:
    """A measurement of a step of known length on a machine of known slowness."""
    rng = np.random.default_rng(seed)
    slow = machine * _drifting(rng, count)
    p50 = step_us * slow * np.exp(rng.normal(0, 0.01, count))
    samples = times(p50)
    assert samples is not None
    rounds = Rounds(
        at_s=tuple(range(count)),
        steps=tuple(range(1000, 1000 * (count + 1), 1000)),
        writes=tuple(range(100, 100 * (count + 1), 100)),
        p50_us=tuple(p50.tolist()),
        p99_us=tuple((2 * p50).tolist()),
        pace_us=tuple((40 * slow).tolist()),
        rss_bytes=(1 << 24,) * count,
    )
    subject = Subject(
        name="aura",
        bundle="build/aura",
        digest="0" * 64,
        model="aura",
        engine="test",
        precision="float32",
        state_bytes=4224,
        kv_bytes_per_step=256,
        times=samples,
        quiet=samples,
        write=None,
        rounds=rounds,
        excerpt_us=(1.0, 2.0),
        excerpt_wrote=(False, True),
        steps=1000 * count,
        writes=100 * count,
        memory_bytes_written=422_400 * count,
        appended_bytes=0,
        folded_bytes=0,
        snapshot_bytes=8352,
        idle_us=(30.0,),
        busy_us=(20.0,),
        rates=(),
        cold=ColdStart(1, 0.3, 0.2, 0.2, 0.05, 300.0),
        memory=Memory(1 << 24, 1 << 24, 1 << 24, 0.0, 1000),
        allocations=Allocations(1000, 0, 0),
        energy=None,
        max_output_error=None,
    )
    return BenchResult(
        schema_version=1,
        created="2026-01-01T00:00:00Z",
        options=Options("default", 60.0, 0.25, (30.0,), 0.1, None, 0, None),
        machine=Machine({"machine": "x86_64", "cpu": None}, {}, (), "none", None),
        empty=samples,
        subjects=(subject,),
        ratios=(),
        interruptions=0,
        notes=("something is not measured",),
    )


@pytest.fixture(scope="session")
def result() -> Callable[..., BenchResult]:
    """Makes a measurement: ``result(step_us, seed, machine=1.0, count=120)``."""
    return _result


@pytest.fixture(scope="session")
def drifting() -> Callable[[np.random.Generator, int], np.ndarray]:
    """How slow a shared machine is in each of so many bursts."""
    return _drifting
