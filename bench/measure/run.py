"""A whole measurement: bursts in turns, what is measured once, and the files of the result."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stategate.bench.measure.harness import Contender, measure_bursts
from stategate.bench.measure.result import assemble
from stategate.bench.measure.segments import Segments
from stategate.bench.measure.sensors import Meter, versions
from stategate.bench.record import BenchResult, Options, to_json
from stategate.bench.report.page import write_report
from stategate.common.console import note, progress
from stategate.contract import Bundle, EpisodeSet
from stategate.contract.durable import whole_file, write_whole
from stategate.contract.staging import scratch_folder

_PARTS = "bench.part"


def measure_bundles(
    chosen: Sequence[Contender],
    options: Options,
    out: Path | None = None,
    fresh: bool = False,
) -> BenchResult:
    """Measure bundles, and write ``bench.json``, ``.html``, ``.md`` and ``.npz`` where asked.

    An interrupted measurement goes on from its pieces, which lie beside them.
    """
    if out is None:
        with scratch_folder() as scratch:
            folder = Path(scratch) / "results"
            return _measure(chosen, options, folder, fresh, "nothing is kept without --out")[0]
    remains = f"what was measured is kept in {out}; the same command goes on from there"
    result, segments = _measure(chosen, options, out, fresh, remains)
    write_whole(out / "bench.json", to_json(result))
    write_report(result, out)
    save: Callable[..., Any] = np.savez_compressed  # its stub takes keywords for allow_pickle
    with whole_file(out / "bench.npz") as file:
        save(file, **dict(segments.samples([contender.name for contender in chosen])))
    segments.discard()
    return result


def _measure(
    chosen: Sequence[Contender], options: Options, folder: Path, fresh: bool, remains: str
) -> tuple[BenchResult, Segments]:
    plan = {
        "host": platform.node(),
        "versions": versions(),
        "options": msgspec.to_builtins(options),
        "episode": EpisodeSet.open(options.episode).digest if options.episode else None,
        "subjects": [[Bundle.open(c.bundle).digest, c.engine] for c in chosen],
    }
    segments = Segments(folder / _PARTS, plan, fresh)
    if segments.rounds:
        note(f"going on after {segments.measured_s:.0f} seconds")
    notes: list[str] = []
    with closing(Meter()) as meter:
        idle_watts = _idle_watts(meter, 4 * options.slot_s)
        with progress(int(10 * options.seconds), "stepping", remains) as report:
            hellos = measure_bursts(chosen, options, segments, meter, report)
    if meter.lost is not None:
        notes.append(f"the energy sensor vanished during the measurement: {meter.lost}")
    with progress(len(chosen), "cold starts, rates, memory", remains) as report:
        result = assemble(
            chosen, options, segments, hellos, idle_watts, meter.sensor, notes, report
        )
    return result, segments


def _idle_watts(meter: Meter, seconds: float) -> float | None:
    """Power of the machine before anything steps."""
    before, start = meter.joules(), time.monotonic()
    if before is None:
        return None
    time.sleep(seconds)
    after = meter.joules()
    return (after - before) / (time.monotonic() - start) if after is not None else None
