"""What the terminal shows of a measurement; everything else is on the page."""

from __future__ import annotations

from stategate.bench.record import BenchResult, Memory, Subject, Times


def lines(result: BenchResult) -> list[str]:
    """A few lines for each subject."""
    told = []
    for subject in result.subjects:
        told += [f"{subject.name} on {subject.engine}, {subject.times.count:,} timed steps"]
        rows = [("all", subject.times), ("quiet", subject.quiet), ("write", subject.write)]
        told += [f"  {label:<8} {_times(times)}" for label, times in rows if times is not None]
        told += [f"  {label:<8} {text}" for label, text in _more(subject)]
    told.append(f"empty loop of the same length: {_times(result.empty)}")
    for ratio in result.ratios:
        told.append(
            f"{ratio.of} over {ratio.to}: {ratio.median:.3f} "
            f"({ratio.low:.3f} to {ratio.high:.3f}; 80 % of rounds "
            f"{ratio.p10:.3f} to {ratio.p90:.3f})"
        )
    told.append(f"energy sensor: {result.machine.sensor}")
    return told + [f"note: {note}" for note in result.notes]


def _times(times: Times) -> str:
    def us(value: float | None) -> str:
        return "      -" if value is None else f"{value:7.1f}"

    return (
        f"p50 {us(times.p50_us)}  p90 {us(times.p90_us)}  p99 {us(times.p99_us)}  "
        f"p99.9 {us(times.p999_us)}  max {us(times.max_us)} us"
    )


def _more(subject: Subject) -> list[tuple[str, str]]:
    memory, cold = subject.memory, subject.cold
    rows = [
        ("writes", f"{subject.writes:,} of {subject.steps:,} steps"),
        ("cold", f"{cold.first_answer_s:.2f} s to the first answer, {cold.cpu_s:.2f} s of CPU"),
        (
            "memory",
            f"{memory.end_bytes / 2**20:.1f} MiB resident, {slope_text(memory)}",
        ),
    ]
    native = subject.allocations.native_per_step
    counted = "not measured" if native is None else f"{native:.1f} a step"
    rows.append(("malloc", counted))
    for rate in subject.rates:
        rows.append((f"{rate.hz:g} Hz", f"{rate.misses} of {rate.ticks + rate.misses} missed"))
    return rows


def slope_text(memory: Memory) -> str:
    """How resident memory changed, or that too few steps were seen to say."""
    slope = memory.slope_bytes_per_million_steps
    if slope is None:
        return f"no slope from {memory.spans_steps:,} steps"
    return f"{slope:+,.0f} bytes per million steps"
