"""The record of a measurement: ``bench.json``, read strictly and rendered without anything else.

Times are wall time of one step in microseconds. What could not be measured is None, and the list
``notes`` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from stategate.common.statistics import Floats
from stategate.contract.errors import ResultError
from stategate.contract.records import load_record
from stategate.contract.specs import Record

SCHEMA_VERSION = 1
BINS_PER_OCTAVE = 16  # of the histograms

_SOME = msgspec.Meta(min_length=1)  # a page cannot be drawn of none


class Times(Record, frozen=True):
    """How long steps took; percentiles by nearest rank, so each is a step that happened."""

    count: int  # steps that were timed
    mean_us: float  # their mean
    p50_us: float  # median
    p90_us: float  # 90th percentile
    p99_us: float | None  # 99th; None below 100 steps
    p999_us: float | None  # 99.9th; None below 1,000 steps
    max_us: float  # the longest
    # histogram with bounds 2**(i/16) us: pairs of i and count, without empty bins
    bins: Annotated[tuple[tuple[int, int], ...], _SOME]


def times(us: Floats) -> Times | None:
    """Summary of step times in microseconds; None of none."""
    if not len(us):
        return None
    count = len(us)
    # Nearest rank: every figure is a step that happened.
    p50, p90, p99, p999 = np.quantile(us, (0.5, 0.9, 0.99, 0.999), method="inverted_cdf").tolist()
    bins = np.floor(np.log2(np.maximum(us, 1e-3)) * BINS_PER_OCTAVE).astype(int)
    labels, counts = np.unique(bins, return_counts=True)
    return Times(
        count=count,
        mean_us=float(us.mean()),
        p50_us=p50,
        p90_us=p90,
        p99_us=p99 if count >= 100 else None,
        p999_us=p999 if count >= 1000 else None,
        max_us=float(us.max()),
        bins=tuple(zip(labels.tolist(), counts.tolist(), strict=True)),
    )


class Rounds(Record, frozen=True):
    """One entry for each burst, in order of time."""

    at_s: tuple[float, ...]  # seconds since the measurement began; interruptions are left out
    steps: tuple[int, ...]  # steps done at its end, untimed ones included
    writes: tuple[int, ...]  # of which writes
    p50_us: tuple[float, ...]  # median of its timed steps
    p99_us: tuple[float, ...]  # 99th percentile of the same
    # time of a fixed piece of Python just before it: how fast the core was
    pace_us: tuple[float, ...]
    rss_bytes: tuple[int, ...]  # resident memory of the process at its end

    def __post_init__(self) -> None:
        """Refuse lists of different lengths, and none at all."""
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"rounds: lists of {sorted(lengths)} bursts")


class AtRate(Record, frozen=True):
    """Steps at a fixed rate."""

    hz: float  # the rate
    ticks: int  # steps that were made
    misses: int  # periods in which none was made, because the one before still ran
    late_p50_us: float  # median time from when a step was due to its start
    late_p99_us: float  # 99th percentile of the same
    late_max_us: float  # the latest
    step_p50_us: float  # median of the steps, each after the rest of its period asleep
    empty_late_p99_us: float  # lateness of a loop that steps nothing
    empty_misses: int  # its missed periods


class ColdStart(Record, frozen=True):
    """Fresh processes, from their start to their first answer."""

    processes: int  # how many were started
    first_answer_s: float  # median wall time until the first step had been made
    cpu_s: float  # median processor time of the same; less disturbed by neighbours
    import_s: float  # of the wall time, loading Python's modules
    open_s: float  # opening the bundle: digests, buffers, engine
    first_step_us: float  # the first step


class Memory(Record, frozen=True):
    """Memory of the process that stepped, and nothing else."""

    before_bytes: int  # resident before the bundle was opened: Python and NumPy
    opened_bytes: int  # after it was opened
    end_bytes: int  # after the last burst
    # Theil-Sen slope over the bursts after the first tenth; None where they span too few
    # steps
    slope_bytes_per_million_steps: float | None
    spans_steps: int  # steps between the first and the last of those


class Allocations(Record, frozen=True):
    """What Python and NumPy hold for steps; `python -m lab allocations` counts calls of malloc."""

    steps: int  # steps that were traced
    python_peak_bytes: int  # largest memory beyond what is held between steps
    python_blocks_kept: int  # Python objects kept over all of these steps
    # calls of malloc a step, their bytes, and calls with Python's objects; in results of before
    native_per_step: float | None = None
    native_bytes_per_step: float | None = None
    all_per_step: float | None = None


class Energy(Record, frozen=True):
    """Energy while this subject stepped."""

    joules: float  # in all
    seconds: float  # for how long
    mj_per_step: float  # energy of the whole sensor's domain, by step
    net_mj_per_step: float  # the same less what the idle machine takes in that time


class Subject(Record, frozen=True):
    """One bundle in one engine."""

    name: str  # how it is called in tables
    bundle: str  # path as given
    digest: str  # identity of the bundle
    model: str  # name of the model
    engine: str  # engine and version
    precision: str  # of the step graph
    state_bytes: int  # one bank of all states
    # what the cache grows by that it replaces; None where it replaces none
    kv_bytes_per_step: int | None
    times: Times  # all steps
    quiet: Times | None  # steps without a write; None where there were none
    write: Times | None  # steps with one
    rounds: Rounds  # time line
    # neighbouring steps from the middle of the measurement, one by one
    excerpt_us: tuple[float, ...]
    excerpt_wrote: tuple[bool, ...]  # which of them wrote
    steps: int  # steps in all, untimed ones included
    writes: int  # of which writes
    memory_bytes_written: int  # bytes of state replaced in memory
    snapshot_bytes: int  # size of one snapshot
    idle_us: tuple[float, ...]  # first steps after an idle gap
    busy_us: tuple[float, ...]  # as many without one
    rates: tuple[AtRate, ...]  # at fixed rates
    cold: ColdStart  # fresh processes
    memory: Memory  # resident memory
    allocations: Allocations  # by step
    energy: Energy | None  # none without a sensor
    # against the golden outputs, in units of the largest of them; None where the bundle has
    # none
    max_output_error: float | None
    sessions: int = 1  # rows that a step serves; each of them may write
    appended_bytes: int = 0  # of ``memory_bytes_written``, bytes put into rings
    folded_bytes: int = 0  # of ``memory_bytes_written``, bytes into which rings were folded

    @property
    def decisions(self) -> int:
        """How often there was a write or none: one for each step and row."""
        return self.steps * self.sessions


class Ratio(Record, frozen=True):
    """Two subjects of one run, burst beside burst."""

    of: str  # the one above the line
    to: str  # the one below
    median: float  # median over the rounds of the ratio of their medians
    low: float  # lower end of its 95 % interval, by a bootstrap over blocks of rounds
    high: float  # upper end
    p10: float  # 10th percentile of the ratios of single rounds
    p90: float  # 90th


class Options(Record, frozen=True):
    """What was asked for."""

    mode: str  # ``default``, ``quick`` or ``official``
    seconds: float  # length of the bursts together
    slot_s: float  # length of one burst
    rates_hz: Annotated[tuple[float, ...], _SOME]  # rates that were tried
    idle_s: float  # idle gap
    core: int | None  # core that every subject was pinned to; None where it was not
    seed: int  # of the order of the bursts
    episode: str | None  # recorded inputs, or None for the golden episode


class Moment(Record, frozen=True):
    """The machine at one moment."""

    at_s: float  # seconds since the measurement began
    load: float | None  # load average of the last minute; None where the system does not tell
    mhz: float | None  # clock of the core of the bursts, where the kernel shows it
    celsius: dict[str, float]  # temperatures by the name of their zone


class Machine(Record, frozen=True):
    """Where it was measured."""

    # what the machine says of itself; None where it does not
    facts: dict[str, str | int | float | None]
    versions: dict[str, str]  # of Python and of the libraries that matter
    moments: tuple[Moment, ...]  # load, clocks and temperatures on the way
    sensor: str  # what measured energy, or ``none``
    idle_watts: float | None  # power before the first burst; None without a sensor


class BenchResult(Record, frozen=True):
    """Everything that is needed to judge a measurement."""

    schema_version: int  # version of this record
    created: str  # UTC, ISO 8601
    options: Options  # what was asked for
    machine: Machine  # where
    # A loop that spins for the median of the first subject's steps instead of stepping, as
    # long as its bursts: what the machine alone adds
    empty: Times
    # what was measured, the first being what others are compared with
    subjects: Annotated[tuple[Subject, ...], _SOME]
    ratios: tuple[Ratio, ...]  # every other subject over the first
    interruptions: int  # times that the measurement was stopped and taken up again
    # what could not be measured, and why; what to know before believing a figure
    notes: tuple[str, ...]


def read_result(path: Path) -> BenchResult:
    """Read a ``bench.json``; `ResultError` where it cannot be, or is of another version."""
    return load_record(
        path,
        BenchResult,
        ResultError,
        "the result of stategate bench",
        remedy="measure again: stategate bench BUNDLE --out DIR",
        version=SCHEMA_VERSION,
        version_key="schema_version",
    )


def to_json(result: Any) -> bytes:
    """A record as it is written to disk."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
