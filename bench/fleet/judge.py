"""Which robots need a look: against their budget, their peers, and what their flash endures.

Peers are the robots that step one bundle. A figure is compared as a logarithm, by the median and
the median absolute deviation of all peers, which a few faulty robots do not move (Rousseeuw and
Croux 1993). A robot is named where it lies further off than any of as many sound robots would with
a probability of 1 % (for figures that are normal in the logarithm), and by a tenth at least.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stategate.bench.fleet.table import Row, rows_in
from stategate.common.flash import SECONDS_PER_DAY, Storage, years_at
from stategate.common.statistics import student_t
from stategate.runtime.base.ledger import Ledger
from stategate.targets import load, load_storage

FALSE_ALARM = 0.01  # probability that a question accuses any robot of a sound fleet
FEWEST_PEERS = 8
LEAST = math.log(1.1)  # what is closer to the median than a tenth is nobody's business
_FEWEST_STEPS = 1000  # of which a rate is by_metrics
_EFFICIENCY = 0.37  # of the median absolute deviation: so many of its samples are as good as 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one robot."""

    robot: str
    what: str  # writes, saves, drift of GATE, flash, budget, or unreadable
    value: float  # the figure
    usual: float | None  # the median of its peers, or the limit
    words: str  # both, and what they mean


@dataclass(slots=True)
class Robot:
    """What is known of one robot."""

    name: str
    model: str = ""
    bundle_sha256: str = ""
    steps: int = 0  # of all its memories
    writes: int = 0
    persisted_bytes: int = 0
    write_rate: float | None = None  # share of steps
    snapshots_per_step: float | None = None
    snapshots: int = 0  # of which that was counted
    bytes_per_day: float | None = None  # persisted, by the clock of its rows
    years: float | None = None  # until its flash ends at that pace; None: not known
    drift: dict[str, float] = field(default_factory=dict)  # late over early rate, by gate
    openings: dict[str, int] = field(default_factory=dict)  # of the later half, by gate
    recorded_steps: int = 0  # in black boxes


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What came of a fleet's folder."""

    robots: tuple[Robot, ...]  # by name
    findings: tuple[Finding, ...]  # by robot
    notes: tuple[str, ...]  # what was not judged, and why
    steps: int  # of all robots
    writes: int
    persisted_bytes: int

    @property
    def named(self) -> tuple[str, ...]:
        """Robots that need a look."""
        return tuple(sorted({finding.robot for finding in self.findings}))


def judge(folder: str | Path, *, storage: Storage | None = None, years: float = 5.0) -> FleetReport:
    """Look at all that was collected.

    Args:
        folder: Of `collect`.
        storage: Medium of every robot; by default the first one of its bundle's target.
        years: A medium that ends sooner is named.

    Raises:
        ResultError: The folder holds no fleet.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in rows_in(Path(folder)):
        rows[row.robot].append(row)
    return judge_rows(rows, storage, years)


def judge_rows(
    rows: Mapping[str, Sequence[Row]], storage: Storage | None = None, years: float = 5.0
) -> FleetReport:
    """See `judge`; rows by the name of the robot."""
    notes, findings, robots = list[str](), list[Finding](), list[Robot]()
    owners: dict[str, str] = {}  # of a file, whoever comes first by name
    for name in sorted(rows):
        own = rows[name]
        files = {row.sha256 for row in own if row.kind in ("snapshot", "metrics")}
        others = {owners.setdefault(file, name) for file in files} - {name}
        if files and others and all(owners[file] != name for file in files):
            notes.append(f"{name} has the files of {', '.join(sorted(others))}: counted once")
            continue
        robot = _robot(name, own, storage, notes)
        robots.append(robot)
        findings += _by_itself(robot, own, years)
    groups: dict[str, list[Robot]] = defaultdict(list)
    for robot in robots:
        groups[robot.bundle_sha256].append(robot)
    for digest, peers in sorted(groups.items()):
        if len(peers) < FEWEST_PEERS:
            few = f"{len(peers)} robots with {peers[0].model or 'no'} bundle {digest[:12]}"
            notes.append(f"{few} are too few to be compared with each other")
            continue
        findings += _among(peers)
    findings.sort(key=lambda one: (one.robot, one.what))
    totals = [sum(getattr(r, n) for r in robots) for n in ("steps", "writes", "persisted_bytes")]
    return FleetReport(tuple(robots), tuple(findings), tuple(notes), *totals)


def _robot(name: str, rows: Sequence[Row], storage: Storage | None, notes: list[str]) -> Robot:
    series: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind in ("snapshot", "journal", "metrics"):
            folder = row.place.rpartition("/")[0] if row.kind != "metrics" else row.place
            series[folder, row.clock].append(row)
    # The same row may come from two states of the folder; a slot that was renamed is one moment.
    ordered = {
        key: sorted({(r.ledger.steps, r.seconds or 0.0): r for r in several}.values(), key=_when)
        for key, several in series.items()
    }
    robot = Robot(name)
    robot.recorded_steps = sum(r.ledger.steps for r in rows if r.kind == "recording")
    if not ordered:
        return robot
    for (place, _), several in ordered.items():
        for one, two in zip(several, several[1:], strict=False):
            if behind := two.ledger.goes_back_from(one.ledger):
                notes.append(f"{name}: {place} counts back in {', '.join(behind[:3])}: two robots?")
                break
    # Counters of memories that follow each other add up; lines of metrics count the same again.
    ledgers = [s[-1].ledger for (_, clock), s in ordered.items() if clock == "wall"]
    ledgers += list({r.sha256: r.ledger for r in rows if r.kind == "retired"}.values())
    by_metrics = [s[-1].ledger for (_, clock), s in ordered.items() if clock != "wall"]
    most = max(by_metrics, key=lambda ledger: ledger.steps, default=Ledger())
    if sum(ledger.steps for ledger in ledgers) < most.steps:
        ledgers = [most]
    for total in ("steps", "writes", "persisted_bytes"):
        setattr(robot, total, sum(getattr(ledger, total) for ledger in ledgers))
    longest = max(ordered.values(), key=lambda s: (s[-1].ledger.steps, len(s)))
    last, first = longest[-1], longest[0]
    robot.model, robot.bundle_sha256 = last.model, last.bundle_sha256
    if last.ledger.steps >= _FEWEST_STEPS:
        robot.write_rate = last.ledger.writes / last.ledger.steps
        robot.snapshots = last.ledger.snapshots
        robot.snapshots_per_step = robot.snapshots / last.ledger.steps
    timed = max(ordered.values(), key=lambda s: (s[-1].seconds or 0.0) - (s[0].seconds or 0.0))
    _wear(robot, timed[0], timed[-1], storage)
    middle = max(ordered.values(), key=len)
    half = [r for r in middle if 2 * r.ledger.steps <= middle[-1].ledger.steps + first.ledger.steps]
    if len(middle) > 2 and len(half) > 1:
        early, late = half[-1].ledger.since(half[0].ledger), _after(middle, half[-1])
        for gate in late.gate_openings:
            rates = [
                (part.gate_openings.get(gate, 0) + 0.5) / (part.steps + 1) for part in (early, late)
            ]
            if min(early.steps, late.steps) >= _FEWEST_STEPS // 2:
                robot.drift[gate] = rates[1] / rates[0]
                counts = [part.gate_openings.get(gate, 0) for part in (early, late)]
                robot.openings[gate] = min(counts)
    return robot


def _after(series: Sequence[Row], row: Row) -> Ledger:
    """What was counted after a row."""
    return series[-1].ledger.since(row.ledger)


def _when(row: Row) -> tuple[int, float]:
    return row.ledger.steps, row.seconds or 0.0


def _wear(robot: Robot, first: Row, last: Row, storage: Storage | None) -> None:
    """Bytes a day by the clock; without one by the rate of the bundle."""
    done = last.ledger.since(first.ledger)
    seconds = (last.seconds or 0.0) - (first.seconds or 0.0)
    if seconds < 1 and last.rate_hz:
        done, seconds = last.ledger, last.ledger.steps / last.rate_hz
    if seconds < 1:
        return
    if storage is None and last.target:
        media = load(last.target).storage.value
        storage = load_storage(media[0]) if media else None
    extra = storage.metadata_bytes * done.snapshots if storage is not None else 0
    robot.bytes_per_day = (done.persisted_bytes + extra) / seconds * SECONDS_PER_DAY
    if storage is not None:
        robot.years = years_at(storage, robot.bytes_per_day)


def _by_itself(robot: Robot, rows: Sequence[Row], years: float) -> Iterable[Finding]:
    """What needs no peers."""
    for row in {r.place: r for r in rows if r.problem}.values():
        yield Finding(robot.name, "unreadable", 0.0, None, f"{row.place}: {row.problem}")
    if robot.years is not None and robot.years < years:
        words = f"its flash ends after {robot.years:.2g} years at this pace"
        yield Finding(robot.name, "flash", robot.years, years, f"{words}; {years:g} are asked for")
    newest = max(rows, key=lambda row: row.ledger.steps)
    limit, ledger = newest.writes_per_1000_steps, newest.ledger
    beyond = ledger.budget_overruns + ledger.suppressed_writes
    if limit is not None and beyond > 0.01 * ledger.steps:
        words = f"{beyond:,} of {ledger.steps:,} steps asked for a write beyond the budget"
        yield Finding(robot.name, "budget", 1000 * beyond / ledger.steps, limit, words)


def _among(peers: Sequence[Robot]) -> Iterable[Finding]:
    """What stands out among robots of one bundle."""
    rates = {p.name: (p.write_rate, p.writes) for p in peers if p.write_rate is not None}
    yield from outliers("writes", rates, "of steps write", "{:.3%}")
    saved = {p.name: (p.snapshots_per_step, p.snapshots) for p in peers if p.snapshots_per_step}
    yield from outliers("saves", saved, "snapshots for each step", "{:.4g}")
    for gate in sorted({gate for p in peers for gate in p.drift}):
        drifts = {p.name: (p.drift[gate], p.openings[gate]) for p in peers if gate in p.drift}
        words = "times as many openings in the later half as in the earlier"
        yield from outliers(f"drift of {gate}", drifts, words, "{:.2f}")


def outliers(
    what: str, figures: Mapping[str, tuple[float, int]], words: str, form: str
) -> Iterable[Finding]:
    """Robots further off than sound ones are; figures with the events that they were counted of."""
    if len(figures) < FEWEST_PEERS:
        return
    names, counts = list(figures), np.array([count for _, count in figures.values()], np.float64)
    values = np.array([value for value, _ in figures.values()])
    logs = np.log(np.maximum(values, 1e-12))
    median = float(np.median(logs))
    chance = 1.0 / (counts + 0.5)  # variance of the logarithm of so many events
    excess = np.abs(logs - median)
    spread = 1.4826 * float(np.median(excess))
    limit = student_t(max(1, int(_EFFICIENCY * len(names))), 1 - FALSE_ALARM / len(names))
    # What chance alone explains is in the spread already, unless a robot has fewer events.
    usual = float(np.median(chance))
    scale = np.sqrt(np.maximum(spread**2, 1e-6) + np.maximum(0.0, chance - usual))
    for i in np.flatnonzero((excess > limit * scale) & (excess > LEAST)):
        middle = math.exp(median)
        text = f"{form.format(values[i])} {words}; {form.format(middle)} are usual among its peers"
        yield Finding(names[i], what, float(values[i]), middle, text)
