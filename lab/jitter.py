"""How late a loop in Python is, with a busy thread beside it: without and with ``realtime=``.

Four lives take turns in slices of some seconds, so that a neighbour on a shared machine disturbs
all of them alike: a loop without body and without a busy thread, which is the machine's own share;
the bundle's loop with a busy thread, as Python has it; the same in real time; and, if it is asked
for, where the busy thread has a priority too, as ``chrt -f 1`` gives it to all of a program.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from stategate.cli.options import bundle_argument, out_option
from stategate.contract import Bundle
from stategate.contract.durable import write_whole
from stategate.runtime import Session
from stategate.runtime.deadline import Loop

LIVES = ("empty", "before", "after", "all")
_RATES = (100.0, 1000.0)


@contextmanager
def busy_thread(has_priority: bool = False) -> Iterator[Callable[[], int]]:
    """A thread that computes in Python until the end; gives how many rounds it has done."""
    rounds, go = [0], threading.Event()

    def compute() -> None:
        if has_priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while not go.is_set():
            for _ in range(1000):
                pass
            rounds[0] += 1

    thread = threading.Thread(target=compute, name="busy")
    thread.start()
    try:
        yield lambda: rounds[0]
    finally:
        go.set()
        thread.join()


def slice_of(
    bundle: Path, life: str, hz: float, periods: int, feed: Mapping[str, npt.NDArray[Any]]
) -> dict[str, Any]:
    """One slice of one life: lateness of each tick, periods missed, what the busy thread did."""
    late = array("q", bytes(8 * periods))
    ticks, done = 0, 0.0
    lacks: tuple[str, ...] = ()
    if life == "empty":
        for tick in Loop(hz):
            if tick.index >= periods:
                break
            late[ticks] = tick.late_ns
            ticks += 1
    else:
        with (
            Session.open(bundle, realtime=life != "before") as session,
            busy_thread(life == "all") as rounds,
        ):
            start, began = time.monotonic(), rounds()
            for tick in session.every(hz):
                if tick.index >= periods:
                    break
                session.step(**feed)
                late[ticks] = tick.late_ns
                ticks += 1
            done = (rounds() - began) / (time.monotonic() - start)
            lacks = session.not_in_real_time or ()
    return {"late": np.array(late[:ticks]), "periods": periods, "rounds": done, "lacks": lacks}


def row_of(slices: list[dict[str, Any]], hz: float) -> dict[str, Any]:
    """What the slices of one life have in common."""
    late_us = np.concatenate([one["late"] for one in slices]) / 1e3
    periods = sum(one["periods"] for one in slices)
    misses = periods - len(late_us)
    figures = {f"p{share:g}_us": float(np.percentile(late_us, share)) for share in (50, 99, 99.9)}
    return {
        "minutes": round(periods / hz / 60, 3),
        "ticks": len(late_us),
        "misses": misses,
        "missed_percent": round(100 * misses / periods, 3),
        **{name: round(value, 1) for name, value in figures.items()},
        "worst_us": round(float(late_us.max()), 1),
        "busy_rounds_per_s": round(float(np.mean([one["rounds"] for one in slices]))),
        "lacks": sorted({lack for one in slices for lack in one["lacks"]}),
    }


@click.command()
@bundle_argument
@click.option("--minutes", default=10.0, help="Of each life at each rate.")
@click.option("--slice", "slice_s", default=10.0, help="Seconds until the next life has its turn.")
@click.option("--rate", "rates_hz", multiple=True, type=float, default=_RATES)
@click.option("--life", "lives", multiple=True, type=click.Choice(LIVES), default=LIVES[:3])
@out_option("The file.", required=True)
def jitter(
    bundle: Path,
    minutes: float,
    slice_s: float,
    rates_hz: tuple[float, ...],
    lives: tuple[str, ...],
    out: Path,
) -> None:
    """Measure how late the loop of BUNDLE is; the file is written after every round."""
    tensors = Bundle.open(bundle).manifest.inputs
    feed = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in tensors}
    slices: dict[tuple[float, str], list[dict[str, Any]]] = {}
    loads = []
    for _ in range(max(1, round(minutes * 60 / slice_s))):
        for hz in rates_hz:
            for life in lives:
                one = slice_of(bundle, life, hz, max(2, round(slice_s * hz)), feed)
                slices.setdefault((hz, life), []).append(one)
        loads.append(os.getloadavg()[0])
        rows = [{"hz": hz, "life": life, **row_of(s, hz)} for (hz, life), s in slices.items()]
        record = {
            "bundle": Bundle.open(bundle).manifest.model.name,
            "cores": os.cpu_count(),
            "load_average": {"mean": round(float(np.mean(loads)), 2), "most": round(max(loads), 2)},
            "slice_s": slice_s,
            "rows": rows,
        }
        write_whole(out, json.dumps(record, indent=1).encode() + b"\n")
    click.echo(out)
