"""From bursts to a record: what ``stategate bench`` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import msgspec
import numpy as np

from stategate.bench.measure.harness import Contender
from stategate.bench.measure.segments import COUNTED, Burst, Segments
from stategate.bench.measure.sensors import facts, versions
from stategate.bench.record import (
    SCHEMA_VERSION,
    Allocations,
    AtRate,
    BenchResult,
    ColdStart,
    Energy,
    Machine,
    Memory,
    Options,
    Ratio,
    Rounds,
    Subject,
    times,
)
from stategate.common.statistics import paired_ratio, slope_per_million
from stategate.contract import Bundle
from stategate.runtime.keep.snapshot import Codec

COLD_PROCESSES = 3
IDLE_GAPS = 20
TRACED_STEPS = 2000
EXCERPT = 300
_FEW_ROUNDS = 20


def assemble(
    chosen: Sequence[Contender],
    options: Options,
    segments: Segments,
    hellos: Sequence[dict[str, Any]],
    idle_watts: float | None,
    sensor: str,
    notes: list[str],
    report: Callable[[int], None],
) -> BenchResult:
    """Measure what is measured once, and put everything together."""
    subjects = []
    for i, contender in enumerate(chosen):
        bursts = segments.of(i)
        subjects.append(_subject(contender, options, bursts, hellos[i], idle_watts))
        report(i + 1)
    empty = times(np.concatenate([burst.ns for burst in segments.of(-1)]) / 1000.0)
    assert empty is not None  # every round has one
    lives = segments.lives
    if lives > 1:
        notes.append(f"interrupted and taken up again {lives - 1} times")
    if segments.rounds < _FEW_ROUNDS:
        notes.append(f"{segments.rounds} rounds are few: intervals are wide, tails are luck")
    return BenchResult(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        options=options,
        machine=Machine(
            facts=facts(),
            versions=versions(),
            moments=tuple(segments.moments),
            sensor=sensor,
            idle_watts=idle_watts,
        ),
        empty=empty,
        subjects=tuple(subjects),
        ratios=tuple(
            ratio(other.name, other.rounds, subjects[0].name, subjects[0].rounds)
            for other in subjects[1:]
        ),
        interruptions=lives - 1,
        notes=tuple(notes),
    )


def ratio(of: str, above: Rounds, to: str, below: Rounds) -> Ratio:
    """How many times slower one is than another that was measured next to it."""
    numerator, divisor = np.array(above.p50_us), np.array(below.p50_us)
    median = paired_ratio(numerator, divisor)
    p10, p90 = np.percentile(numerator / divisor, (10, 90))
    return Ratio(of, to, median.estimate, median.low, median.high, float(p10), float(p90))


def _subject(
    contender: Contender,
    options: Options,
    bursts: list[Burst],
    hello: dict[str, Any],
    idle_watts: float | None,
) -> Subject:
    bundle = Bundle.open(contender.bundle)
    manifest = bundle.manifest
    opener = partial(contender.open, options)
    quick = options.mode == "quick"
    hellos = []
    for _ in range(0 if quick else COLD_PROCESSES - 1):
        with opener() as driver:
            hellos.append(driver.hello)
    with opener() as driver:
        hellos.append(driver.hello)
        error = driver.ask("parity")[0]["max_output_error"]
        idle, _ = driver.ask("idle", idle_s=options.idle_s, repeats=5 if quick else IDLE_GAPS)
        slot_s = (2 if quick else 8) * options.slot_s
        rates = [
            driver.ask("rate", hz=hz, ticks=max(2, round(hz * slot_s)))[0]
            for hz in options.rates_hz
        ]
        traced = driver.ask("traced", steps=TRACED_STEPS)[0]
    us = np.concatenate([burst.ns for burst in bursts]) / 1000.0
    wrote = np.concatenate([burst.wrote for burst in bursts]).astype(bool)
    excerpt = bursts[len(bursts) // 2]
    everything = times(us)
    assert everything is not None  # a burst has steps
    return Subject(
        name=contender.name,
        bundle=str(contender.bundle),
        digest=bundle.digest,
        model=manifest.model.name,
        engine=hello["engine"],
        precision=manifest.step_graph.precision,
        state_bytes=manifest.state_bytes,
        kv_bytes_per_step=manifest.model.kv_bytes_per_step,
        times=everything,
        quiet=times(us[~wrote]),
        write=times(us[wrote]),
        rounds=_rounds(bursts),
        excerpt_us=tuple((excerpt.ns[:EXCERPT] / 1000).tolist()),
        excerpt_wrote=tuple(excerpt.wrote[:EXCERPT].astype(bool).tolist()),
        steps=sum(burst.steps for burst in bursts),
        **{name: sum(getattr(burst, name) for burst in bursts) for name in COUNTED},
        sessions=manifest.sessions,
        snapshot_bytes=Codec(manifest).file_bytes,
        idle_us=tuple(idle["idle_us"]),
        busy_us=tuple(idle["busy_us"]),
        rates=tuple(msgspec.convert(rate, AtRate) for rate in rates),
        cold=_cold(hellos),
        memory=_memory(bursts, hello),
        allocations=Allocations(TRACED_STEPS, traced["peak_bytes"], traced["kept"]),
        energy=_energy(bursts, idle_watts),
        max_output_error=error,
    )


def _rounds(bursts: list[Burst]) -> Rounds:
    def each(share: float) -> tuple[float, ...]:
        return tuple(float(np.quantile(b.ns, share, method="inverted_cdf")) / 1000 for b in bursts)

    return Rounds(
        at_s=tuple(round(burst.at_s, 3) for burst in bursts),
        steps=tuple(np.cumsum([burst.steps for burst in bursts]).tolist()),
        writes=tuple(np.cumsum([burst.writes for burst in bursts]).tolist()),
        p50_us=each(0.5),
        p99_us=each(0.99),
        pace_us=tuple(burst.pace_us for burst in bursts),
        rss_bytes=tuple(burst.rss_bytes for burst in bursts),
    )


def _cold(hellos: list[dict[str, Any]]) -> ColdStart:
    _, *names = ColdStart.__struct_fields__
    middle = {name: float(np.median([hello[name] for hello in hellos])) for name in names}
    return ColdStart(processes=len(hellos), **middle)


def _memory(bursts: list[Burst], hello: dict[str, Any]) -> Memory:
    """Of the last process, because memory of two is not one line."""
    last = [burst for burst in bursts if burst.life == bursts[-1].life]
    settled = last[len(last) // 10 :]
    at = np.cumsum([burst.steps for burst in settled]).astype(float)
    resident = np.array([burst.rss_bytes for burst in settled], float)
    return Memory(
        before_bytes=hello["before_bytes"],
        opened_bytes=hello["opened_bytes"],
        end_bytes=last[-1].rss_bytes,
        slope_bytes_per_million_steps=slope_per_million(at, resident),
        spans_steps=int(at[-1] - at[0]),
    )


def _energy(bursts: list[Burst], idle_watts: float | None) -> Energy | None:
    measured = [burst for burst in bursts if burst.joules is not None]
    steps = sum(burst.steps for burst in measured)
    if not steps or idle_watts is None:
        return None
    joules = sum(burst.joules or 0.0 for burst in measured)
    seconds = sum(burst.seconds for burst in measured)
    return Energy(
        joules=joules,
        seconds=seconds,
        mj_per_step=1000 * joules / steps,
        net_mj_per_step=1000 * (joules - idle_watts * seconds) / steps,
    )
