"""``stategate bench``: short bursts of every subject in random order, then what is measured once.

The speed of a core moves by half within minutes on a shared machine, and clocks and temperature
move on any. Subjects therefore take turns in bursts of a quarter of a second, each in a process of
its own on the same core, and are compared burst beside burst.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stategate.bench.measure.driver import Driver
from stategate.bench.measure.segments import COUNTED, Burst, Segments
from stategate.bench.measure.sensors import Meter, moment
from stategate.bench.measure.subject import engines
from stategate.bench.record import Options
from stategate.contract import Bundle, Manifest
from stategate.contract.episodes import load_stream
from stategate.contract.errors import EngineError, EpisodeError, TargetError

MOST_TIMED = 20_000
_FEWEST_TIMED = 10
_SEGMENT_S = 2.0
_EMPTY_SHARE = 0.25  # of a slot, for the loop that steps nothing


@dataclass(frozen=True, slots=True)
class Contender:
    """A bundle that takes part."""

    name: str  # how it is called in tables
    bundle: Path  # its folder
    engine: str = "auto"  # what steps it; ``auto`` leaves that to the bundle

    def open(self, options: Options, **more: Any) -> Driver:
        """Start a process that steps it."""
        return Driver(
            str(self.bundle),
            episode=options.episode,
            core=options.core,
            more={"engine": self.engine},
            **more,
        )


def contenders(
    paths: Sequence[Path], choices: Sequence[str] = ("auto",), episode: str | None = None
) -> list[Contender]:
    """Look at the bundles before anything is measured."""
    recorded = load_stream(episode) if episode is not None else None
    entries: list[Contender] = []
    for path in paths:
        manifest = Bundle.open(path).manifest
        _check_machine(path, manifest)
        if recorded is not None:
            recorded.check(manifest.step)
        elif manifest.golden is None:
            raise EpisodeError(
                "the bundle carries no golden episode",
                found=path,
                remedy="give inputs with --episode FILE.npz",
            )
        able, unable = engines(path)
        for engine in able if "all" in choices else choices:
            if engine != "auto" and engine not in able:
                raise EngineError(f"{path} is not stepped by {engine}", found="; ".join(unable))
            name = manifest.model.name + (f" {engine}" if engine != "auto" else "")
            count = sum(other.name.split(" #")[0] == name for other in entries)
            entries.append(Contender(f"{name} #{count + 1}" if count else name, path, engine))
    return entries


def _check_machine(path: Path, manifest: Manifest) -> None:
    made_for = manifest.target
    if made_for is not None and made_for.machine != platform.machine():
        raise TargetError(
            f"{path} is for another architecture",
            found=f"{made_for.name}, {made_for.machine}",
            expected=platform.machine(),
            remedy="run stategate bench on the device, or export without --target",
        )


def measure_bursts(
    chosen: Sequence[Contender],
    options: Options,
    segments: Segments,
    meter: Meter,
    report: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Take turns until the time is over; goes on from the segments that are there.

    ``report`` is called with the tenths of seconds measured so far. Returns what each process said
    when it started.
    """
    life, round_, before_s = segments.lives, segments.rounds, segments.measured_s
    with ExitStack() as stack:
        drivers = [stack.enter_context(contender.open(options)) for contender in chosen]
        fitting = [_warm_up(driver, options.slot_s) for driver in drivers]
        ledgers = [driver.ask("burst", timed=1, slot_s=0.0)[0]["ledger"] for driver in drivers]
        began = saved = time.perf_counter()
        pending: list[Burst] = []

        def elapsed_s() -> float:
            return before_s + time.perf_counter() - began

        while elapsed_s() < options.seconds:
            order = np.random.default_rng((options.seed, round_)).permutation(len(chosen))
            for i in order.tolist():
                facts, ledger = _burst(drivers[i], fitting[i][0], options.slot_s, ledgers[i], meter)
                ledgers[i] = ledger
                pending.append(Burst(round_, elapsed_s(), i, life, **facts))
            facts = _empty(drivers[0], fitting[0], options.slot_s)
            pending.append(Burst(round_, elapsed_s(), -1, life, **facts))
            round_ += 1
            if time.perf_counter() - saved > _SEGMENT_S:
                segments.add(pending, moment(pending[-1].at_s, options.core))
                pending, saved = [], time.perf_counter()
            report(int(10 * min(options.seconds, elapsed_s())))
        if pending:
            segments.add(pending, moment(pending[-1].at_s, options.core))
        return [driver.hello for driver in drivers]


def _warm_up(driver: Driver, slot_s: float) -> tuple[int, int]:
    """Steps to time in a slot, and the median of a step in ns."""
    driver.ask("burst", timed=_FEWEST_TIMED, slot_s=slot_s)
    _, raw = driver.ask("burst", timed=_FEWEST_TIMED, slot_s=slot_s)
    median_ns = float(np.median(np.frombuffer(raw[: 4 * _FEWEST_TIMED], np.uint32)))
    # Half as long again: storing gates and samples takes time too.
    fitting = int(slot_s * 1e9 / (1.5 * median_ns + 1000))
    return min(MOST_TIMED, max(_FEWEST_TIMED, fitting)), round(median_ns)


def _burst(
    driver: Driver, timed: int, slot_s: float, ledger: dict[str, Any], meter: Meter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of a `Burst`, and the ledger after it."""
    joules, start = meter.joules(), time.perf_counter()
    header, raw = driver.ask("burst", timed=timed, slot_s=slot_s)
    seconds, after = time.perf_counter() - start, meter.joules()
    now = header["ledger"]
    return {
        "pace_us": header["pace_us"],
        "steps": header["steps"],
        **{name: now[name] - ledger[name] for name in COUNTED},
        "rss_bytes": header["rss_bytes"],
        "joules": after - joules if after is not None and joules is not None else None,
        "seconds": seconds,
        "raw_ns": raw[: 4 * timed],
        "raw_wrote": raw[4 * timed :],
    }, now


def _empty(driver: Driver, fitting: tuple[int, int], slot_s: float) -> dict[str, Any]:
    """The facts of a `Burst` of the loop that spins for the median of a step."""
    timed, median_ns = fitting
    count = max(1, math.ceil(min(timed, slot_s * 1e9 / median_ns) * _EMPTY_SHARE))
    _, raw = driver.ask("empty", timed=count, length_ns=median_ns)
    return {"raw_ns": raw, "raw_wrote": bytes(count)}


def last_core() -> int | None:
    """The core that bursts are pinned to by default; None where the system has no such thing."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0))
