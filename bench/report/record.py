"""The record of a measurement: ``bench.json``, read strictly and rendered without anything else.

Times are wall time of one step in microseconds. What could not be measured is None, and the list
``notes`` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from stategate.contract.errors import ResultError
from stategate.contract.reading import RECORD_BYTES, decode_json, read_bounded
from stategate.contract.specs import Record

SCHEMA_VERSION = 1

_SOME = msgspec.Meta(min_length=1)  # a page cannot be drawn of none


class Times(Record, frozen=True):
    """How long steps took; percentiles by nearest rank, so each is a step that happened.

    Attributes:
        count: Steps that were timed.
        mean_us: Their mean.
        p50_us: Median.
        p90_us: 90th percentile.
        p99_us: 99th; None below 100 steps.
        p999_us: 99.9th; None below 1,000 steps.
        max_us: The longest.
        bins: Histogram with bounds 2**(i/16) us: pairs of i and count, empty bins left out.
    """

    count: int
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float | None
    p999_us: float | None
    max_us: float
    bins: Annotated[tuple[tuple[int, int], ...], _SOME]


class Rounds(Record, frozen=True):
    """One entry for each burst, in order of time.

    Attributes:
        at_s: Seconds since the measurement began; interruptions are left out.
        steps: Steps done at its end, untimed ones included.
        writes: Of which writes.
        p50_us: Median of its timed steps.
        p99_us: 99th percentile of the same.
        pace_us: Time of a fixed piece of Python just before it: how fast the core was.
        rss_bytes: Resident memory of the process at its end.
    """

    at_s: tuple[float, ...]
    steps: tuple[int, ...]
    writes: tuple[int, ...]
    p50_us: tuple[float, ...]
    p99_us: tuple[float, ...]
    pace_us: tuple[float, ...]
    rss_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse lists of different lengths, and none at all."""
        lengths = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(f"rounds: lists of {sorted(lengths)} bursts")


class AtRate(Record, frozen=True):
    """Steps at a fixed rate.

    Attributes:
        hz: The rate.
        ticks: Steps that were made.
        misses: Periods in which none was made, because the one before still ran.
        late_p50_us: Median time from when a step was due to its start.
        late_p99_us: 99th percentile of the same.
        late_max_us: The latest.
        step_p50_us: Median of the steps, each after the rest of its period asleep.
        empty_late_p99_us: Lateness of a loop that steps nothing.
        empty_misses: Its missed periods.
    """

    hz: float
    ticks: int
    misses: int
    late_p50_us: float
    late_p99_us: float
    late_max_us: float
    step_p50_us: float
    empty_late_p99_us: float
    empty_misses: int


class ColdStart(Record, frozen=True):
    """Fresh processes, from their start to their first answer.

    Attributes:
        processes: How many were started.
        first_answer_s: Median wall time until the first step had been made.
        cpu_s: Median processor time of the same; less disturbed by neighbours.
        import_s: Of the wall time, loading Python's modules.
        open_s: Opening the bundle: digests, buffers, engine.
        first_step_us: The first step.
    """

    processes: int
    first_answer_s: float
    cpu_s: float
    import_s: float
    open_s: float
    first_step_us: float


class Memory(Record, frozen=True):
    """Memory of the process that stepped, and nothing else.

    Attributes:
        before_bytes: Resident before the bundle was opened: Python and NumPy.
        opened_bytes: After it was opened.
        end_bytes: After the last burst.
        slope_bytes_per_million_steps: Theil-Sen slope over the bursts after the first tenth; None
            where they span too few steps.
        spans_steps: Steps between the first and the last of those.
    """

    before_bytes: int
    opened_bytes: int
    end_bytes: int
    slope_bytes_per_million_steps: float | None
    spans_steps: int


class Allocations(Record, frozen=True):
    """What a step allocates, counted in processes of their own, less what an empty loop does.

    Attributes:
        steps: Steps that were counted.
        native_per_step: Calls of malloc, calloc and realloc, and what stands for them in C++;
            Python's own small objects come from its own pools and are not among them.
        native_bytes_per_step: What they asked for.
        all_per_step: The same with Python's objects taken from malloc too.
        python_peak_bytes: Largest memory that Python and NumPy held at once beyond what they held
            between steps.
        python_blocks_kept: Python objects kept over all of these steps.
    """

    steps: int
    native_per_step: float | None
    native_bytes_per_step: float | None
    all_per_step: float | None
    python_peak_bytes: int
    python_blocks_kept: int


class Energy(Record, frozen=True):
    """Energy while this subject stepped.

    Attributes:
        joules: In all.
        seconds: For how long.
        mj_per_step: Energy of the whole sensor's domain, by step.
        net_mj_per_step: The same less what the idle machine takes in that time.
    """

    joules: float
    seconds: float
    mj_per_step: float
    net_mj_per_step: float


class Subject(Record, frozen=True):
    """One bundle in one engine.

    Attributes:
        name: How it is called in tables.
        bundle: Path as given.
        digest: Identity of the bundle.
        model: Name of the model.
        engine: Engine and version.
        precision: Of the step graph.
        state_bytes: One bank of all states.
        kv_bytes_per_step: What the cache grows by that it replaces; None where it replaces none.
        times: All steps.
        quiet: Steps without a write; None where there were none.
        write: Steps with one.
        rounds: Time line.
        excerpt_us: Neighbouring steps from the middle of the measurement, one by one.
        excerpt_wrote: Which of them wrote.
        steps: Steps in all, untimed ones included.
        writes: Of which writes.
        memory_bytes_written: Bytes of state replaced in memory.
        snapshot_bytes: Size of one snapshot.
        idle_us: First steps after an idle gap.
        busy_us: As many without one.
        rates: At fixed rates.
        cold: Fresh processes.
        memory: Resident memory.
        allocations: By step.
        energy: None without a sensor.
        max_output_error: Against the golden outputs, in units of the largest of them; None where
            the bundle has none.
    """

    name: str
    bundle: str
    digest: str
    model: str
    engine: str
    precision: str
    state_bytes: int
    kv_bytes_per_step: int | None
    times: Times
    quiet: Times | None
    write: Times | None
    rounds: Rounds
    excerpt_us: tuple[float, ...]
    excerpt_wrote: tuple[bool, ...]
    steps: int
    writes: int
    memory_bytes_written: int
    snapshot_bytes: int
    idle_us: tuple[float, ...]
    busy_us: tuple[float, ...]
    rates: tuple[AtRate, ...]
    cold: ColdStart
    memory: Memory
    allocations: Allocations
    energy: Energy | None
    max_output_error: float | None


class Ratio(Record, frozen=True):
    """Two subjects of one run, burst beside burst.

    Attributes:
        of: The one above the line.
        to: The one below.
        median: Median over the rounds of the ratio of their medians.
        low: Lower end of its 95 % interval, by a bootstrap over blocks of rounds.
        high: Upper end.
        p10: 10th percentile of the ratios of single rounds.
        p90: 90th.
    """

    of: str
    to: str
    median: float
    low: float
    high: float
    p10: float
    p90: float


class Options(Record, frozen=True):
    """What was asked for.

    Attributes:
        mode: ``default``, ``quick`` or ``official``.
        seconds: Length of the bursts together.
        slot_s: Length of one burst.
        rates_hz: Rates that were tried.
        idle_s: Idle gap.
        core: Core that every subject was pinned to; None where it was not.
        seed: Of the order of the bursts.
        episode: Recorded inputs, or None for the golden episode.
    """

    mode: str
    seconds: float
    slot_s: float
    rates_hz: Annotated[tuple[float, ...], _SOME]
    idle_s: float
    core: int | None
    seed: int
    episode: str | None


class Moment(Record, frozen=True):
    """The machine at one moment.

    Attributes:
        at_s: Seconds since the measurement began.
        load: Load average of the last minute; None where the system does not tell.
        mhz: Clock of the core of the bursts, where the kernel shows it.
        celsius: Temperatures by the name of their zone.
    """

    at_s: float
    load: float | None
    mhz: float | None
    celsius: dict[str, float]


class Machine(Record, frozen=True):
    """Where it was measured.

    Attributes:
        facts: What the machine says of itself; None where it does not.
        versions: Of Python and of the libraries that matter.
        moments: Load, clocks and temperatures on the way.
        sensor: What measured energy, or ``none``.
        idle_watts: Power before the first burst; None without a sensor.
    """

    facts: dict[str, str | int | float | None]
    versions: dict[str, str]
    moments: tuple[Moment, ...]
    sensor: str
    idle_watts: float | None


class BenchResult(Record, frozen=True):
    """Everything that is needed to judge a measurement.

    Attributes:
        schema_version: Version of this record.
        created: UTC, ISO 8601.
        options: What was asked for.
        machine: Where.
        empty: A loop that spins for the median of the first subject's steps instead of stepping,
            as long as its bursts: what the machine alone adds.
        subjects: What was measured, the first being what others are compared with.
        ratios: Every other subject over the first.
        interruptions: Times that the measurement was stopped and taken up again.
        notes: What could not be measured, and why; what to know before believing a figure.
    """

    schema_version: int
    created: str
    options: Options
    machine: Machine
    empty: Times
    subjects: Annotated[tuple[Subject, ...], _SOME]
    ratios: tuple[Ratio, ...]
    interruptions: int
    notes: tuple[str, ...]


class _Versioned(msgspec.Struct):
    schema_version: int


def read_result(path: Path) -> BenchResult:
    """Read a ``bench.json`` strictly.

    Raises:
        ResultError: It cannot be read, is of another version, or lacks or adds a field.
    """
    remedy = "measure again: stategate bench BUNDLE --out DIR"
    try:
        raw = read_bounded(path, RECORD_BYTES)
        version = msgspec.json.decode(raw, type=_Versioned).schema_version
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise ResultError(
            "this is not a result of stategate bench", found=f"{path}: {problem}", remedy=remedy
        ) from problem
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{path} is of another version",
            found=version,
            expected=SCHEMA_VERSION,
            remedy="upgrade stategate" if version > SCHEMA_VERSION else remedy,
        )
    try:
        return decode_json(raw, BenchResult)
    except msgspec.MsgspecError as problem:
        raise ResultError(
            f"{path} breaks its schema", found=problem, expected=f"version {SCHEMA_VERSION}"
        ) from problem


def to_json(result: Any) -> bytes:
    """A record as it is written to disk."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
