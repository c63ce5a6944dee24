"""A process that steps one subject, and reads from its standard input what to do.

One process for each subject, so that memory, allocators and caches of one are not those of another.
A request is a line of JSON; the answer is a line of JSON, which says how many bytes of samples
follow it. ``stategate.bench.measure.driver`` is the other end.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tracemalloc  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any, BinaryIO  # noqa: E402

import numpy as np  # noqa: E402

from stategate.bench.measure.subject import Subject, parity  # noqa: E402
from stategate.contract import Bundle  # noqa: E402
from stategate.contract.episodes import load_stream  # noqa: E402
from stategate.runtime.base.process import rss_bytes  # noqa: E402
from stategate.runtime.deadline import Loop, first_step_after_idle_us  # noqa: E402

Answer = tuple[dict[str, Any], bytes]
PACE_TURNS = 2000
_LEAD_IN = 10


class Worker:
    """The subject, its inputs, and the jobs it can be given."""

    def __init__(self, bundle: str, episode: str | None, maker: str, more: dict[str, Any]) -> None:
        self._imported = time.perf_counter()
        self._before = rss_bytes()
        module, function = maker.split(":")
        opened = Bundle.open(bundle)
        recorded = load_stream(episode) if episode else opened.golden()
        assert recorded is not None  # the driver has looked
        self._feeds = list(recorded)
        self._bundle, self._at = opened, 0
        before = time.perf_counter()
        make: Callable[..., Subject] = getattr(importlib.import_module(module), function)
        self._open = partial(make, bundle, **more)
        self._subject = self._open()
        self._opened = time.perf_counter()
        self._open_s = self._opened - before

    def hello(self) -> Answer:
        """Make the first step, and say how long everything took."""
        start = time.perf_counter()
        self._subject.step(self._feeds[0])
        first = time.perf_counter() - start
        return {
            "engine": self._subject.engine,
            "import_s": self._imported - _STARTED,
            "open_s": self._open_s,
            "first_step_us": first * 1e6,
            "before_bytes": self._before,
            "opened_bytes": rss_bytes(),
            "cpu_s": time.process_time(),
        }, b""

    def parity(self) -> Answer:
        """Step the golden episode with a fresh subject: it begins at the initial state."""
        return {"max_output_error": parity(self._bundle, self._open())}, b""

    def burst(self, timed: int, slot_s: float) -> Answer:
        """Time some steps, then go on stepping until the slot is over."""
        end = time.perf_counter() + slot_s
        pace_us = pace()
        elapsed_ns = np.zeros(timed, np.uint32)
        # An array of NumPy would take more than the clock to put a figure into.
        took = [0] * timed
        log = self._subject.writes(timed)
        note, step, feeds, at = log.note, self._subject.step, self._feeds, self._at
        count, clock = len(feeds), time.perf_counter_ns
        # The process slept until it was asked; what that costs is measured by `idle`.
        for _ in range(_LEAD_IN):
            step(feeds[at])
            at = at + 1 if at + 1 < count else 0
        bulk = getattr(self._subject, "bulk", None)
        if bulk is not None:  # a peer in C with a clock of its own
            bulk(feeds, at, elapsed_ns)
            at = (at + timed) % count
        else:
            for i in range(timed):
                feed = feeds[at]
                at = at + 1 if at + 1 < count else 0
                start = clock()
                step(feed)
                took[i] = clock() - start
                note(i)
            elapsed_ns[:] = np.minimum(took, 0xFFFFFFFF)
        extra = 0
        while time.perf_counter() < end:
            step(feeds[at])
            at = at + 1 if at + 1 < count else 0
            extra += 1
        self._at = at
        raw = elapsed_ns.tobytes() + log.read(timed).tobytes()
        header = {
            "timed": timed,
            "steps": _LEAD_IN + timed + extra,
            "pace_us": pace_us,
            "rss_bytes": rss_bytes(),
            "ledger": self._subject.ledger(),
        }
        return header, raw

    def empty(self, timed: int, length_ns: int) -> Answer:
        """Spin for ``length_ns`` instead of stepping."""
        elapsed_ns = np.zeros(timed, np.uint32)
        clock = time.perf_counter_ns
        for i in range(timed):
            start = clock()
            end = start + length_ns
            while clock() < end:
                pass
            elapsed_ns[i] = min(clock() - start, 0xFFFFFFFF)
        return {"timed": timed}, elapsed_ns.tobytes()

    def idle(self, idle_s: float, repeats: int) -> Answer:
        """First steps after a pause, and as many without one."""
        step, feed = self._subject.step, self._feeds[0]
        pauses = {"idle_us": idle_s, "busy_us": 0.0}
        return {
            name: first_step_after_idle_us(lambda: step(feed), pause, repeats)
            for name, pause in pauses.items()
        }, b""

    def rate(self, hz: float, ticks: int) -> Answer:
        """Step at a fixed rate, after a loop at the same rate that steps nothing."""
        empty = Loop(hz, ticks=ticks)
        for _ in empty:
            pass
        loop, took = Loop(hz, ticks=ticks), []
        for tick in loop:
            start = time.perf_counter_ns()
            self._subject.step(self._feeds[tick.index % len(self._feeds)])
            took.append(time.perf_counter_ns() - start)
        stats, nothing = loop.stats(), empty.stats()
        names = ("ticks", "misses", "late_p50_us", "late_p99_us", "late_max_us")
        return {
            "hz": hz,
            **{name: getattr(stats, name) for name in names},
            "step_p50_us": float(np.median(took)) / 1000,
            "empty_late_p99_us": nothing.late_p99_us,
            "empty_misses": nothing.misses,
        }, b""

    def traced(self, steps: int) -> Answer:
        """Memory that Python and NumPy take in a step, and keep after it."""
        for i in range(200):
            self._turn(i)
        gc.collect()
        blocks = sys.getallocatedblocks()
        for i in range(steps):
            self._turn(i)
        blocks = sys.getallocatedblocks() - blocks
        tracemalloc.start()
        self._turn(0)
        tracemalloc.reset_peak()
        resting = tracemalloc.get_traced_memory()[0]
        for i in range(steps):
            self._turn(i)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"kept": blocks, "peak_bytes": peak - resting, "steps": steps}, b""

    def _turn(self, i: int) -> None:
        self._subject.step(self._feeds[i % len(self._feeds)])


def pace() -> float:
    """Median time in us of a fixed piece of Python, of five: how fast the core is just now."""
    took = []
    for _ in range(5):
        start = time.perf_counter_ns()
        total = 0
        for i in range(PACE_TURNS):
            total += i
        took.append(time.perf_counter_ns() - start)
    return sorted(took)[2] / 1000


def serve(worker: Worker, requests: BinaryIO, answers: BinaryIO) -> None:
    """Do what is asked until the other end is closed."""
    for line in requests:
        request = json.loads(line)
        header, raw = getattr(worker, request.pop("do"))(**request)
        answers.write(json.dumps(header | {"nbytes": len(raw)}).encode() + b"\n" + raw)
        answers.flush()


def main() -> None:
    """Called as ``python -m stategate.bench.measure.worker SPEC``, SPEC being JSON."""
    spec = json.loads(sys.argv[1])
    core = spec.pop("core", None)
    if core is not None:
        os.sched_setaffinity(0, {core})
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Worker(**spec), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
