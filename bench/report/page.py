"""What the page and the Markdown say, from the record alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from stategate.bench.record import BenchResult, Subject, Times
from stategate.bench.report.plots import memory_plot, times_plots
from stategate.bench.wear import WriteRate, wear_rows
from stategate.common.page import document, items, plots, table
from stategate.contract.errors import TargetError
from stategate.targets import load_storage, storage_names

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; without a head its first column names facts."""

    head: Row
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is below it."""

    title: str  # heading
    text: tuple[str, ...] = ()  # sentences, one a paragraph
    tables: tuple[Table, ...] = ()  # tables
    figures: tuple[str, ...] = ()  # SVG, on the page alone


def html(result: BenchResult) -> str:
    """The page: one file that asks nobody for anything."""
    parts = [f"<h1>{escape(_title(result))}</h1>", f"<p>{escape(_lead(result))}</p>"]
    parts.append(items(result.notes))
    for section in sections(result):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(text)}</p>" for text in section.text]
        for each in section.tables:
            parts.append(table(each.head, each.rows, "" if each.head else "facts"))
        if section.figures:
            parts.append(plots(section.figures))
    return document(_title(result), parts)


def markdown(result: BenchResult) -> str:
    """The same without its plots."""
    parts = [f"# {_title(result)}", _lead(result)]
    if result.notes:
        parts.append("\n".join(f"* {note}" for note in result.notes))
    for section in sections(result):
        parts += [f"## {section.title}", *section.text]
        parts += [_markdown_table(each) for each in section.tables]
    return "\n\n".join(parts) + "\n"


def _markdown_table(each: Table) -> str:
    def line(cells: Row) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = each.head or [""] * len(each.rows[0])
    rule = "|" + "---|" + "---:|" * (len(head) - 1)
    return "\n".join([line(head), rule, *map(line, each.rows)])


def sections(result: BenchResult) -> list[Section]:
    """The report in its order."""
    told = [_step_times(result)]
    if result.ratios:
        told.insert(0, _comparison(result))
    return [
        *told,
        _waits(result),
        _memory(result),
        _ledger(result),
        *_wear(result),
        _energy(result),
        _machine(result),
    ]


def _title(result: BenchResult) -> str:
    return "Bench of " + " and ".join(subject.name for subject in result.subjects)


def _lead(result: BenchResult) -> str:
    facts, options = result.machine.facts, result.options
    where = facts.get("board") or facts.get("cpu") or facts.get("machine")
    loads = [moment.load for moment in result.machine.moments if moment.load is not None]
    busy = f"; load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return (
        f"{options.seconds:g} seconds ({options.mode}) on {where}, {result.created}{busy}. "
        "Times are wall time of one step, called from Python."
    )


def _us(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _times_row(name: str, times: Times) -> Row:
    figures = (times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us)
    return (name, *map(_us, figures), f"{times.count:,}")


def _step_times(result: BenchResult) -> Section:
    rows = []
    for subject in result.subjects:
        parts = (("", subject.times), (", quiet", subject.quiet), (", write", subject.write))
        rows += [_times_row(subject.name + kind, times) for kind, times in parts if times]
    rows.append(_times_row("empty loop", result.empty))
    head = ("us", "p50", "p90", "p99", "p99.9", "max", "steps")
    text = (
        "The empty loop spins for the median of the first row instead of stepping: what its tail "
        "shows is the machine's doing, and no step can do better.",
    )
    return Section("Step times", text, (Table(head, rows),), tuple(times_plots(result)))


def _comparison(result: BenchResult) -> Section:
    first = result.subjects[0]
    rows = [
        (
            ratio.of,
            f"{ratio.median:.3f}",
            f"{ratio.low:.3f} to {ratio.high:.3f}",
            f"{ratio.p10:.3f} to {ratio.p90:.3f}",
        )
        for ratio in result.ratios
    ]
    head = (f"times {first.name}", "median", "95 % interval", "80 % of rounds")
    text = ("Ratio of the median step times of bursts that were made beside each other.",)
    return Section("Comparison", text, (Table(head, rows),))


def _waits(result: BenchResult) -> Section:
    at_rates, starts = [], []
    for subject in result.subjects:
        for rate in subject.rates:
            at_rates.append(
                (
                    f"{subject.name} at {rate.hz:g} Hz",
                    f"{rate.misses:,} of {rate.ticks + rate.misses:,}",
                    f"{rate.empty_misses:,}",
                    _us(rate.late_p50_us),
                    _us(rate.late_p99_us),
                    _us(rate.empty_late_p99_us),
                    _us(rate.step_p50_us),
                )
            )
        cold = subject.cold
        starts.append(
            (
                subject.name,
                _us(float(np.median(subject.idle_us))),
                _us(float(np.median(subject.busy_us))),
                f"{cold.first_answer_s:.2f}",
                f"{cold.cpu_s:.2f}",
                f"{cold.import_s:.2f}",
                f"{cold.open_s:.3f}",
                _us(cold.first_step_us),
            )
        )
    gap = f"after {1000 * result.options.idle_s:g} ms idle, us"
    return Section(
        "Deadlines, idle gaps, cold starts",
        (
            "Lateness is the time from when a step was due to its start. A fresh process imports, "
            f"opens the bundle and steps once; medians of {result.subjects[0].cold.processes}.",
        ),
        (
            Table(
                (
                    "rate",
                    "missed",
                    "empty loop",
                    "late p50, us",
                    "late p99, us",
                    "empty p99, us",
                    "step p50, us",
                ),
                at_rates,
            ),
            Table(
                (
                    "first steps",
                    gap,
                    "without, us",
                    "first answer, s",
                    "CPU, s",
                    "import, s",
                    "open, s",
                    "first step, us",
                ),
                starts,
            ),
        ),
    )


def _memory(result: BenchResult) -> Section:
    rows = []
    for subject in result.subjects:
        memory, made = subject.memory, subject.allocations
        slope = memory.slope_bytes_per_million_steps
        rows.append(
            (
                subject.name,
                f"{subject.state_bytes:,}",
                f"{memory.end_bytes / 2**20:.1f}",
                f"{(memory.end_bytes - memory.before_bytes) / 2**20:.1f}",
                "too few steps" if slope is None else f"{slope:+,.0f}",
                _count(made.native_per_step),
                _count(made.native_bytes_per_step),
                _count(made.all_per_step),
                f"{made.python_peak_bytes:,}",
            )
        )
    head = (
        "",
        "state, bytes",
        "resident, MiB",
        "of it the model's",
        "slope, bytes per 10^6 steps",
        "mallocs a step",
        "bytes a step",
        "with Python's",
        "Python's peak, bytes",
    )
    spans = min(subject.memory.spans_steps for subject in result.subjects)
    text = (
        f"Resident memory is of a process that steps nothing else; its slope is taken over "
        f"{spans:,} steps or more. The horizon is computed from the sizes in the manifest: the "
        "states never grow, and a key-value cache of the same width grows in every step.",
    )
    return Section("Memory", text, (Table(head, rows),), (memory_plot(result),))


def _count(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.1f}"


def _share(subject: Subject) -> float:
    return subject.writes / subject.steps if subject.steps else 0.0


def _ledger(result: BenchResult) -> Section:
    rows = [
        (
            subject.name,
            f"{subject.steps:,}",
            f"{subject.writes:,}",
            f"{subject.steps - subject.writes:,}",
            f"{_share(subject):.2%}",
            f"{subject.memory_bytes_written:,}",
            f"{subject.snapshot_bytes:,}",
            "-" if subject.max_output_error is None else f"{subject.max_output_error:.1e}",
        )
        for subject in result.subjects
    ]
    head = (
        "",
        "steps",
        "writes",
        "quiet steps",
        "write rate",
        "bytes replaced in RAM",
        "bytes of a snapshot",
        "output error",
    )
    text = (
        "Writes to RAM wear nothing; snapshots wear the flash. The output error is against the "
        "bundle's golden episode, in units of its largest output.",
    )
    return Section("Write ledger", text, (Table(head, rows),))


def _wear(result: BenchResult) -> list[Section]:
    """Life of each known medium at the lowest rate that was tried."""
    hz = result.options.rates_hz[0]
    first = result.subjects[0]
    measured = WriteRate(_share(first), "this measurement")
    rows: list[Row] = []
    policies: tuple[str, ...] = ()
    for name in storage_names():
        try:
            storage = load_storage(name)
        except TargetError:
            continue
        lives = wear_rows(storage, first.snapshot_bytes, hz, measured)
        policies = tuple(row.policy for row in lives)
        rows.append((name, *(_years(row.years) + "*" * row.estimate for row in lives)))
    text = (
        f"Years until the rated endurance is used up, if {first.name} steps at {hz:g} Hz with the "
        "write rate above and is saved by each policy. * rests on an assumption: see stategate "
        "wear.",
    )
    return [Section("Wear", text, (Table(("years", *policies), rows),))]


def _years(years: float | None) -> str:
    return "for ever" if years is None else f"{years:,.0f}" if years >= 10 else f"{years:.2g}"


def _energy(result: BenchResult) -> Section:
    sensor = f"Sensor: {result.machine.sensor}."
    rows = [
        (
            subject.name,
            f"{energy.mj_per_step:.4g}",
            f"{energy.net_mj_per_step:.4g}",
            f"{energy.joules / energy.seconds:.2f}",
        )
        for subject in result.subjects
        if (energy := subject.energy) is not None
    ]
    if not rows:
        return Section("Energy", (sensor + " Energy was not measured.",))
    idle = result.machine.idle_watts or 0.0
    head = ("", "mJ a step", "beyond idle, mJ", "W while stepping")
    return Section("Energy", (f"{sensor} Idle: {idle:.2f} W.",), (Table(head, rows),))


def _machine(result: BenchResult) -> Section:
    machine, options = result.machine, result.options
    rows = [(name, "unknown" if v is None else str(v)) for name, v in machine.facts.items()]
    rows += list(machine.versions.items())
    clocks = [moment.mhz for moment in machine.moments if moment.mhz is not None]
    rows.append(("clock", f"{min(clocks):.0f} to {max(clocks):.0f} MHz" if clocks else "unknown"))
    zones = sorted({zone for moment in machine.moments for zone in moment.celsius})
    for zone in zones:
        degrees = [m.celsius[zone] for m in machine.moments if zone in m.celsius]
        rows.append((f"temperature {zone}", f"{min(degrees):.1f} to {max(degrees):.1f} C"))
    if not zones:
        rows.append(("temperature", "no sensor"))
    rows.append(("core", "not pinned" if options.core is None else str(options.core)))
    rows.append(("rounds", f"{len(result.subjects[0].rounds.at_s):,}"))
    rows.append(("interruptions", str(result.interruptions)))
    rows.append(("seed", str(options.seed)))
    rows.append(("inputs", options.episode or "the golden episode"))
    for subject in result.subjects:
        rows.append((subject.name, f"{subject.engine}, {subject.precision}, {subject.digest}"))
    return Section("Machine and options", (), (Table((), rows),))
