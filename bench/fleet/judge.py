"""Which robots need a look: against their budget, their peers, and what their flash endures.

Peers are the robots that step one bundle. A figure is compared as a logarithm, by the median and
the median absolute deviation of all peers, which a few faulty robots do not move (Rousseeuw and
Croux 1993). A robot is named where it lies further off than any of as many sound robots would with
a probability of 1 % (for figures that are normal in the logarithm), and by a tenth at least.
"""

from __future__ import annotations

import math
import time
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
TOGETHER = math.log(1.5)  # all of a bundle's robots, against what its calibration expected
LEAST = math.log(1.1)  # what is closer to the median than a tenth is nobody's business
_FEWEST_STEPS = 1000  # of which a rate is by_metrics
_EARLIEST = 1_577_836_800  # 2020: before that no clock of a robot was right
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
    expected_write_rate: float | None = None  # of the bundle's calibration, where it has one gate
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
    together: tuple[str, ...]  # what all robots of a bundle have in common, against its calibration
    notes: tuple[str, ...]  # what was not judged, and why
    compared: int  # robots whose share of writes was compared with others
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
    together, compared = list[str](), 0
    for digest, peers in sorted(groups.items()):
        bundle = f"{peers[0].model or 'no'} bundle {digest[:12]}".rstrip()
        rates = [peer.write_rate for peer in peers if peer.write_rate is not None]
        if short := len(peers) - len(rates):
            words = f"fewer than {_FEWEST_STEPS:,} steps, and are not compared"
            notes.append(f"{short} of {len(peers)} robots with {bundle} have {words}")
        if rates and (text := _together(peers, float(np.median(rates)))):
            together.append(f"the robots with {bundle} {text}")
        if len(rates) < FEWEST_PEERS:
            if not short:
                words = "are too few to be compared with each other"
                notes.append(f"{len(peers)} robots with {bundle} {words}")
            continue
        compared += len(rates)
        findings += _among(peers)
    findings.sort(key=lambda one: (one.robot, one.what))
    totals = [sum(getattr(r, n) for r in robots) for n in ("steps", "writes", "persisted_bytes")]
    texts = tuple(findings), tuple(together), tuple(notes)
    return FleetReport(tuple(robots), *texts, compared, *totals)


def _together(peers: Sequence[Robot], usual: float) -> str:
    """What no comparison with peers shows: that all of them write as calibration did not expect."""
    rates = {peer.expected_write_rate for peer in peers if peer.expected_write_rate}
    if len(rates) != 1 or abs(math.log(max(usual, 1e-12) / (expected := rates.pop()))) < TOGETHER:
        return ""
    return f"write in {usual:.3%} of their steps (median); calibration expected {expected:.3%}"


def _robot(name: str, rows: Sequence[Row], storage: Storage | None, notes: list[str]) -> Robot:
    series: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    states: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        states[row.state].append(row)
        if row.kind in ("snapshot", "journal", "metrics"):
            folder = row.place.rpartition("/")[0] if row.kind != "metrics" else row.place
            series[folder, row.clock, row.bundle_sha256].append(row)
    robot = Robot(name)
    # The same black box may come from several states of the folder, longer each time.
    recorded: dict[str, int] = defaultdict(int)
    for row in (row for row in rows if row.kind == "recording"):
        recorded[row.place] = max(recorded[row.place], row.ledger.steps)
    robot.recorded_steps = sum(recorded.values())
    if not series:
        return robot
    ordered = []
    for (place, *_), several in series.items():
        stretches = list(_stretches(several))
        ordered += stretches
        if len(stretches) > 1:
            why = "installed anew, two robots of one name, or a wrong clock"
            notes.append(f"{name}: {place} counts back: {why}; the longest stretch is looked at")
    # A state's memories follow each other, and add up; another state counts the same again.
    every = [_counted(own) for own in states.values()]
    total = max(every, key=lambda ledger: ledger.steps)
    for counter in ("steps", "writes", "persisted_bytes"):
        setattr(robot, counter, getattr(total, counter))
    longest = max(ordered, key=lambda s: (s[-1].ledger.steps, len(s)))
    last = longest[-1]
    robot.model, robot.bundle_sha256 = last.model, last.bundle_sha256
    if last.ledger.steps >= _FEWEST_STEPS:
        robot.write_rate = last.ledger.writes / last.ledger.steps
        if last.ledger.gate_openings == dict.fromkeys(last.expected, last.ledger.writes):
            (robot.expected_write_rate,) = last.expected.values() or (None,)
        robot.snapshots = last.ledger.snapshots
        robot.snapshots_per_step = robot.snapshots / last.ledger.steps
    sane = [s for s in ordered if all(_is_time(row) for row in s)]
    if len(sane) < len(ordered):
        notes.append(f"{name}: its clock is not used: it was before 2020, or after today")
    timed = max(sane or [[last]], key=lambda s: (s[-1].seconds or 0.0) - (s[0].seconds or 0.0))
    _wear(robot, timed[0], timed[-1], storage)
    middle = max(ordered, key=len)
    first = middle[0]
    half = [r for r in middle if 2 * r.ledger.steps <= middle[-1].ledger.steps + first.ledger.steps]
    if len(middle) > 2 and len(half) > 1:
        early = half[-1].ledger.since(half[0].ledger)
        late = middle[-1].ledger.since(half[-1].ledger)
        for gate in late.gate_openings:
            counts = [part.gate_openings.get(gate, 0) for part in (early, late)]
            if min(early.steps, late.steps) >= _FEWEST_STEPS // 2:
                before, after = (c + 0.5 for c in counts)
                robot.drift[gate] = after / (late.steps + 1) / (before / (early.steps + 1))
                robot.openings[gate] = min(counts)
    return robot


def _counted(rows: Sequence[Row]) -> Ledger:
    """What one state of a robot's folder counts in all: lines of metrics count the same again."""
    newest: dict[str, Ledger] = {}
    lines = Ledger()
    for row in rows:
        if row.kind == "metrics":
            lines = max(lines, row.ledger, key=lambda ledger: ledger.steps)
        elif row.kind != "recording":
            place = row.place.rpartition("/")[0] + f"/{row.kind == 'retired'}"
            newest[place] = max(
                newest.get(place, Ledger()), row.ledger, key=lambda ledger: ledger.steps
            )
    total = Ledger()
    for ledger in newest.values():
        total = ledger.after(total)
    return max(total, lines, key=lambda ledger: ledger.steps)


def _stretches(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows in the order of their clock, each moment once, cut where a counter goes back."""
    once = {(row.seconds or 0.0, row.ledger.steps): row for row in rows}
    ordered = [once[when] for when in sorted(once)]
    stretch = ordered[:1]
    for row in ordered[1:]:
        if row.ledger.goes_back_from(stretch[-1].ledger):
            yield stretch
            stretch = []
        stretch.append(row)
    yield stretch


def _is_time(row: Row) -> bool:
    """Whether a wall clock may have said this: a board without a battery begins in 1970."""
    return row.clock != "wall" or _EARLIEST < (row.seconds or 0.0) < time.time() + SECONDS_PER_DAY


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
    # A file that another collection could read, with its bundle named, is no problem any more.
    read = {(r.place, r.sha256) for r in rows if not r.problem}
    wrong = {r.place: r for r in rows if r.problem and (r.place, r.sha256) not in read}
    for row in wrong.values():
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
