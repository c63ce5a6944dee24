"""What page, Markdown and terminal say of a measurement, from the record alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from stategate.bench.record import AtRate, BenchResult, Energy, Memory, Ratio, Subject, Times
from stategate.bench.wear import WriteRate, wear_rows, years_text
from stategate.common.page import Part, Verdict, items, plots, report, table
from stategate.common.tables import markdown_table
from stategate.contract.durable import write_whole
from stategate.contract.reading import printable
from stategate.targets import load_storage, storage_names

T = TypeVar("T")
Row = Sequence[str]
Columns = dict[str, Callable[[T], str]]  # heading of each column -> its cell of one row


class Table(NamedTuple):
    """A table; without a head its first column names facts."""

    head: Row
    rows: Sequence[Row]


class Section(NamedTuple):
    """A heading and what is below it."""

    title: str
    text: tuple[str, ...] = ()  # a paragraph each
    tables: tuple[Table, ...] = ()
    figures: Callable[[], Sequence[str]] = tuple  # draws SVG, for the page alone


def write_report(result: BenchResult, folder: Path) -> tuple[Path, Path]:
    """Page and Markdown, from the record alone; returns their paths."""
    page, text = folder / "bench.html", folder / "bench.md"
    write_whole(page, html(result).encode())
    write_whole(text, markdown(result).encode())
    return page, text


def html(result: BenchResult) -> str:
    """The page: one file that loads nothing from anywhere."""
    return report(_title(result), [part(result)])


def part(result: BenchResult) -> Part:
    """A measurement on a page with others."""
    body = [f"<p>{escape(_lead(result))}</p>", items(result.notes)]
    for section in sections(result):
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [f"<p>{escape(text)}</p>" for text in section.text]
        for head, rows in section.tables:
            body.append(table(head, rows, "" if head else "facts"))
        if figures := section.figures():
            body.append(plots(figures))
    return Part(_title(result), [_verdict(result, s) for s in result.subjects], body)


def _verdict(result: BenchResult, subject: Subject) -> Verdict:
    """Whether it keeps up with each rate that was tried, as far as the machine itself does."""
    late = [rate for rate in subject.rates if rate.misses > rate.empty_misses]
    words = [f"p50 {_us(subject.times.p50_us)} us, p99 {_us(subject.times.p99_us)} us"]
    words += [
        f"misses {r.misses:,} of {r.ticks + r.misses:,} periods at {r.hz:g} Hz, "
        f"where a loop without a model misses {r.empty_misses:,}"
        for r in late
    ]
    if subject.rates and not late:
        rates = ", ".join(f"{rate.hz:g}" for rate in subject.rates)
        words.append(f"keeps up with {rates} Hz")
    words += [
        f"{ratio.median:.2f} times {ratio.to} ({ratio.low:.2f} to {ratio.high:.2f})"
        for ratio in result.ratios
        if ratio.of == subject.name
    ]
    words.append(_slope_text(subject.memory))
    return Verdict(subject.name, not late if subject.rates else None, "; ".join(words))


def markdown(result: BenchResult) -> str:
    """The same without its plots."""
    parts = [f"# {_title(result)}"]
    words = {True: "passed", False: "failed", None: "measured"}
    verdicts = [_verdict(result, subject) for subject in result.subjects]
    parts.append("\n".join(f"* **{words[v.passed]}** {v.subject}: {v.words}" for v in verdicts))
    parts.append(_lead(result))
    if result.notes:
        parts.append("\n".join(f"* {note}" for note in result.notes))
    for section in sections(result):
        parts += [f"## {section.title}", *section.text]
        for head, rows in section.tables:
            named = head or [""] * len(rows[0])
            parts.append(markdown_table(named, rows, range(1, len(named))))
    return "\n\n".join(parts) + "\n"


def sections(result: BenchResult) -> list[Section]:
    """The report in its order."""
    return [
        _bundles(result),
        *([_comparison(result)] if result.ratios else []),
        _step_times(result),
        _waits(result),
        _memory(result),
        _ledger(result),
        _wear(result),
        _energy(result),
        _machine(result),
    ]


def lines(result: BenchResult) -> list[str]:
    """What the terminal shows; everything else is on the page."""
    texts = []
    for subject in result.subjects:
        texts.append(f"{subject.name} on {subject.engine}, {subject.times.count:,} timed steps")
        kinds = _kinds(subject, "all", "quiet", "write")
        rows = [(kind, _times_line(times)) for kind, times in kinds]
        texts += [f"  {label:<8} {text}" for label, text in (*rows, *_facts_of(subject))]
    texts.append(f"empty loop of the same length: {_times_line(result.empty)}")
    texts += [
        f"{ratio.of} over {ratio.to}: {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}; "
        f"80 % of rounds {ratio.p10:.3f} to {ratio.p90:.3f})"
        for ratio in result.ratios
    ]
    texts.append(f"energy sensor: {result.machine.sensor}")
    return texts + [f"note: {note}" for note in result.notes]


def _kinds(subject: Subject, *names: str) -> list[tuple[str, Times]]:
    """All steps, quiet ones and writes, as far as there were some."""
    kinds = zip(names, (subject.times, subject.quiet, subject.write), strict=True)
    return [(name, times) for name, times in kinds if times is not None]


def _times_line(times: Times) -> str:
    def us(value: float | None) -> str:
        return "      -" if value is None else f"{value:7.1f}"

    return (
        f"p50 {us(times.p50_us)}  p90 {us(times.p90_us)}  p99 {us(times.p99_us)}  "
        f"p99.9 {us(times.p999_us)}  max {us(times.max_us)} us"
    )


def _facts_of(subject: Subject) -> list[tuple[str, str]]:
    memory, cold = subject.memory, subject.cold
    resident = f"{memory.end_bytes / 2**20:.1f} MiB resident, {_slope_text(memory)}"
    return [
        ("writes", f"{subject.writes:,} of {subject.decisions:,} {_steps_of(subject)}"),
        ("cold", f"{cold.first_answer_s:.2f} s to the first answer, {cold.cpu_s:.2f} s of CPU"),
        ("memory", resident),
        *(
            (f"{rate.hz:g} Hz", f"{rate.misses} of {rate.ticks + rate.misses} missed")
            for rate in subject.rates
        ),
    ]


def _slope_text(memory: Memory) -> str:
    slope = memory.slope_bytes_per_million_steps
    if slope is None:
        return f"no slope from {memory.spans_steps:,} steps"
    return f"{slope:+,.0f} bytes per million steps"


def _filled(columns: Columns[T], rows: Iterable[T]) -> Table:
    return Table(tuple(columns), [[cell(row) for cell in columns.values()] for row in rows])


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


def _middle(values: Sequence[float]) -> str:
    """Of times that were measured; none where a clock went backwards in each."""
    return _us(median(values) if values else None)


def _step_times(result: BenchResult) -> Section:
    rows = [
        (subject.name + kind, times)
        for subject in result.subjects
        for kind, times in _kinds(subject, "", ", quiet", ", write")
    ]
    columns: Columns[tuple[str, Times]] = {
        "us": lambda row: row[0],
        "p50": lambda row: _us(row[1].p50_us),
        "p90": lambda row: _us(row[1].p90_us),
        "p99": lambda row: _us(row[1].p99_us),
        "p99.9": lambda row: _us(row[1].p999_us),
        "max": lambda row: _us(row[1].max_us),
        "steps": lambda row: f"{row[1].count:,}",
    }
    text = (
        "The empty loop spins for the median of the first row instead of stepping: what its tail "
        "shows comes from the machine, and no step can do better."
    )
    each = _filled(columns, [*rows, ("empty loop", result.empty)])

    def figures() -> list[str]:
        from stategate.bench.report.plots import times_plots  # a device draws nothing

        return times_plots(result)

    return Section("Step times", (text,), (each,), figures)


def _bundles(result: BenchResult) -> Section:
    columns: Columns[Subject] = {
        "": lambda subject: subject.name,
        "bundle": lambda subject: subject.digest[:12],
        "engine": lambda subject: printable(subject.engine, 60),
        "precision plan": lambda subject: subject.precision,
        "state, bytes": lambda subject: f"{subject.state_bytes:,}",
    }
    return Section("Bundles", (), (_filled(columns, result.subjects),))


def _comparison(result: BenchResult) -> Section:
    columns: Columns[Ratio] = {
        f"times {result.subjects[0].name}": lambda ratio: ratio.of,
        "median": lambda ratio: f"{ratio.median:.3f}",
        "95 % interval": lambda ratio: f"{ratio.low:.3f} to {ratio.high:.3f}",
        "80 % of rounds": lambda ratio: f"{ratio.p10:.3f} to {ratio.p90:.3f}",
    }
    text = "Ratio of the median step times of bursts that were made next to each other."
    return Section("Comparison", (text,), (_filled(columns, result.ratios),))


def _waits(result: BenchResult) -> Section:
    pairs = [(subject, rate) for subject in result.subjects for rate in subject.rates]
    at_rates: Columns[tuple[Subject, AtRate]] = {
        "rate": lambda row: f"{row[0].name} at {row[1].hz:g} Hz",
        "missed": lambda row: f"{row[1].misses:,} of {row[1].ticks + row[1].misses:,}",
        "empty loop": lambda row: f"{row[1].empty_misses:,}",
        "late p50, us": lambda row: _us(row[1].late_p50_us),
        "late p99, us": lambda row: _us(row[1].late_p99_us),
        "empty p99, us": lambda row: _us(row[1].empty_late_p99_us),
        "step p50, us": lambda row: _us(row[1].step_p50_us),
    }
    starts: Columns[Subject] = {
        "first steps": lambda subject: subject.name,
        f"after {1000 * result.options.idle_s:g} ms idle, us": lambda s: _middle(s.idle_us),
        "without, us": lambda subject: _middle(subject.busy_us),
        "first answer, s": lambda subject: f"{subject.cold.first_answer_s:.2f}",
        "CPU, s": lambda subject: f"{subject.cold.cpu_s:.2f}",
        "import, s": lambda subject: f"{subject.cold.import_s:.2f}",
        "open, s": lambda subject: f"{subject.cold.open_s:.3f}",
        "first step, us": lambda subject: _us(subject.cold.first_step_us),
    }
    text = (
        "Lateness is the time from when a step was due to its start. A fresh process imports, "
        f"opens the bundle and steps once; medians of {result.subjects[0].cold.processes}."
    )
    tables = (_filled(at_rates, pairs), _filled(starts, result.subjects))
    return Section("Deadlines, idle gaps, cold starts", (text,), tables)


def _memory(result: BenchResult) -> Section:
    def grown(subject: Subject) -> str:
        return f"{(subject.memory.end_bytes - subject.memory.before_bytes) / 2**20:.1f}"

    columns: Columns[Subject] = {
        "": lambda subject: subject.name,
        "state, bytes": lambda subject: f"{subject.state_bytes:,}",
        "resident, MiB": lambda subject: f"{subject.memory.end_bytes / 2**20:.1f}",
        "of it the model's": grown,
        "slope": lambda subject: _slope_text(subject.memory),
        "objects kept": lambda subject: f"{subject.allocations.python_blocks_kept:,}",
        "Python's peak, bytes": lambda subject: f"{subject.allocations.python_peak_bytes:,}",
    }
    spans = min(subject.memory.spans_steps for subject in result.subjects)
    text = (
        f"Resident memory is of a process that steps nothing else; its slope is taken over "
        f"{spans:,} steps or more. The horizon is computed from the sizes in the manifest: the "
        "states never grow, and a key-value cache of the same width grows in every step."
    )
    each = _filled(columns, result.subjects)

    def figures() -> tuple[str, ...]:
        from stategate.bench.report.plots import memory_plots

        return memory_plots(result)

    return Section("Memory", (text,), (each,), figures)


def _share(subject: Subject) -> float:
    return subject.writes / subject.decisions if subject.steps else 0.0


def _steps_of(subject: Subject) -> str:
    return "steps" if subject.sessions == 1 else f"steps of {subject.sessions} sessions together"


def _ledger(result: BenchResult) -> Section:
    def error(subject: Subject) -> str:
        return "-" if subject.max_output_error is None else f"{subject.max_output_error:.1e}"

    columns: Columns[Subject] = {
        "": lambda subject: subject.name,
        "steps": lambda subject: f"{subject.steps:,}",
        "sessions": lambda subject: f"{subject.sessions:,}",
        "writes": lambda subject: f"{subject.writes:,}",
        "quiet steps": lambda subject: f"{subject.decisions - subject.writes:,}",
        "write rate": lambda subject: f"{_share(subject):.2%}",
        "bytes replaced in RAM": lambda subject: f"{subject.memory_bytes_written:,}",
        "of these appended": lambda subject: f"{subject.appended_bytes:,}",
        "and folded": lambda subject: f"{subject.folded_bytes:,}",
        "bytes of a snapshot": lambda subject: f"{subject.snapshot_bytes:,}",
        "output error": error,
    }
    text = (
        "Writes to RAM wear nothing; snapshots wear the flash. The output error is against the "
        "bundle's golden episode, in units of its largest output."
    )
    return Section("Write ledger", (text,), (_filled(columns, result.subjects),))


def _wear(result: BenchResult) -> Section:
    """Life of each known medium at the lowest rate that was tried."""
    hz, first = result.options.rates_hz[0], result.subjects[0]
    measured = WriteRate(_share(first), "this measurement")
    rows: list[Row] = []
    policies: tuple[str, ...] = ()
    for name in storage_names():
        lives = wear_rows(load_storage(name), first.snapshot_bytes, hz, measured)
        policies = tuple(row.policy for row in lives)
        rows.append((name, *(years_text(row.years) + "*" * row.estimate for row in lives)))
    text = (
        f"Years until the rated endurance is used up, if {first.name} steps at {hz:g} Hz with the "
        "write rate above and is saved by each policy. * rests on an assumption: see stategate "
        "wear."
    )
    return Section("Wear", (text,), (Table(("years", *policies), rows),))


def _energy(result: BenchResult) -> Section:
    sensor = f"Sensor: {result.machine.sensor}."
    rows = [(s.name, s.energy) for s in result.subjects if s.energy is not None]
    if not rows:
        return Section("Energy", (sensor + " Energy was not measured.",))
    idle = result.machine.idle_watts or 0.0
    columns: Columns[tuple[str, Energy]] = {
        "": lambda row: row[0],
        "mJ a step": lambda row: f"{row[1].mj_per_step:.4g}",
        "beyond idle, mJ": lambda row: f"{row[1].net_mj_per_step:.4g}",
        "W while stepping": lambda row: f"{row[1].joules / row[1].seconds:.2f}",
    }
    return Section("Energy", (f"{sensor} Idle: {idle:.2f} W.",), (_filled(columns, rows),))


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
    return Section("Machine and options", (), (Table((), rows),))
