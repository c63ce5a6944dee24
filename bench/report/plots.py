"""The plots of a measurement, and the one picture of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stategate.bench.record import BINS_PER_OCTAVE, BenchResult, Times
from stategate.common.page import GRID, INK, SERIES, plot_style, themed_svg
from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError
from stategate.contract.records import load_record

_HORIZON = 100_000
_MOST_LINES = len(SERIES)
# The picture of a run stands in pages that know no dark mode, so its colours are its own.
_STATE, _CACHE, _WRITES, _ALWAYS = "#1b6ca8", "#c8553d", "#2a7f62", "#8a8a8a"
_FILES: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "dpi": 150, "metadata": {"Software": None}},
    ".svg": {"format": "svg", "metadata": {"Date": None}},
}


def times_plots(result: BenchResult) -> list[str]:
    """How long steps took: how many of each length, the tail, an excerpt, the whole time.

    A subject beyond the fifth is in the tables alone.
    """
    shown = result.subjects[:_MOST_LINES]
    first, all_times = shown[0], [subject.times for subject in shown]

    def density(axes: Axes) -> None:
        for subject, colour in zip(shown, SERIES, strict=False):
            _steps(axes, subject.times, subject.name, colour)
        _steps(axes, result.empty, "empty loop", INK, "--")
        most = max(times.p99_us or times.max_us for times in (result.empty, *all_times))
        least = min(2 ** (times.bins[0][0] / BINS_PER_OCTAVE) for times in all_times)
        axes.set(xscale="log", xlim=(least / 1.2, 2 * most), xlabel="us", ylabel="% of steps")

    def tail(axes: Axes) -> None:
        for subject, colour in zip(shown, SERIES, strict=False):
            axes.plot(*_slower(subject.times), color=colour, label=subject.name)
        axes.plot(*_slower(result.empty), color=INK, ls="--", label="empty loop")
        axes.set(xscale="log", yscale="log", xlabel="us", ylabel="% of steps that took longer")

    def excerpt(axes: Axes) -> None:
        us, wrote = np.array(first.excerpt_us), np.array(first.excerpt_wrote)
        at = np.arange(len(us))
        axes.plot(at, us, color=GRID, lw=1)
        axes.scatter(at[~wrote], us[~wrote], s=6, color=SERIES[0], label="quiet", zorder=3)
        axes.scatter(at[wrote], us[wrote], s=14, color=SERIES[1], label="write", zorder=3)
        axes.set(yscale="log", xlabel="step", ylabel="us")

    def whole(axes: Axes) -> None:
        for subject, colour in zip(shown, SERIES, strict=False):
            rounds = subject.rounds
            axes.plot(rounds.at_s, rounds.p50_us, color=colour, label=f"{subject.name}, p50")
            axes.plot(rounds.at_s, rounds.p99_us, color=colour, lw=1.2, ls=":")
        axes.plot([], [], color=INK, lw=1.2, ls=":", label="p99")
        axes.set(yscale="log", xlabel="seconds", ylabel="us, each burst")

    def writes(axes: Axes) -> None:
        for subject, colour in zip(shown, SERIES, strict=False):
            rounds = subject.rounds
            steps, done = (np.array((0, *values)) for values in (rounds.steps, rounds.writes))
            rate = 100 * np.diff(done) / np.diff(steps) / subject.sessions
            axes.plot(rounds.at_s, rate, color=colour, label=subject.name)
        axes.set(xlabel="seconds", ylabel="% of steps that wrote")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # a steady rate is no part of the frame

    return [
        _plot("How long steps took", density),
        _plot("The tail", tail),
        _plot(f"{len(first.excerpt_us)} steps of {first.name}, one by one", excerpt),
        _plot("Over the whole time", whole),
        _plot("Writes over the whole time", writes),
    ]


def memory_plot(result: BenchResult) -> str:
    """What the memory takes after so many steps; computed, and said so."""
    steps = np.logspace(0, np.log10(_HORIZON), 60)
    sizes = dict.fromkeys((s.state_bytes, s.kv_bytes_per_step) for s in result.subjects)

    def draw(axes: Axes) -> None:
        for (state_bytes, kv_bytes), colour in zip(sizes, SERIES, strict=False):
            constant = np.full(len(steps), state_bytes)
            label = f"state, {state_bytes:,} bytes"
            axes.plot(steps, constant, color=colour, lw=2.5, label=label)
            if kv_bytes is not None:
                label = f"KV cache, {kv_bytes:,} bytes a step"
                axes.plot(steps, kv_bytes * steps, color=colour, ls="--", label=label)
        axes.set(xscale="log", yscale="log", xlabel="step", ylabel="bytes")

    return _plot("Memory against horizon (computed)", draw)


def _edges(times: Times) -> tuple[np.ndarray, np.ndarray]:
    """Lower bounds of the bins from the first to one past the last, and shares in per cent."""
    bins = dict(times.bins)
    labels = np.arange(min(bins), max(bins) + 2)
    shares = np.array([100 * bins.get(i, 0) / times.count for i in labels.tolist()])
    return 2.0 ** (labels / BINS_PER_OCTAVE), shares


def _steps(axes: Axes, times: Times, label: str, colour: str, dashes: str = "-") -> None:
    bounds, shares = _edges(times)
    axes.stairs(shares[:-1], bounds, color=colour, label=label, ls=dashes)


def _slower(times: Times) -> tuple[np.ndarray, np.ndarray]:
    bounds, shares = _edges(times)
    beyond = 100 - np.concatenate(([0.0], np.cumsum(shares)[:-1]))
    real = beyond > 50 / times.count  # half a step: what is below is left by rounding
    return bounds[real], beyond[real]


def _plot(title: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(plot_style(title)):  # type: ignore[arg-type]
        figure = Figure()
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title)
        figure.legend(fontsize=8, loc="outside lower center", ncols=2)
        return themed_svg(figure, title)


class Timeline(msgspec.Struct, frozen=True):
    """Samples over the horizon of a run."""

    step: tuple[int, ...]
    writes: tuple[int, ...]


class Run(msgspec.Struct, frozen=True):
    """What the picture needs of a ``ledger.json``; other fields are passed over."""

    model: str
    steps: int
    writes: int
    state_bytes: int
    write_ratio: float | None
    kv_bytes_per_step: int | None
    kv_over_state: float | None
    timeline: Timeline

    def __post_init__(self) -> None:
        """Refuse a timeline that cannot be drawn."""
        if not self.timeline.step or len(self.timeline.step) != len(self.timeline.writes):
            raise ValueError("the timeline is empty or uneven")


def read_run(path: Path) -> Run:
    """Read a ledger; `EpisodeError` where it is missing, or no run wrote it."""
    remedy = "make one with: stategate run BUNDLE --out DIR"
    return load_record(path, Run, EpisodeError, "the ledger of a run", remedy=remedy)


def draw_run(run: Run, stem: Path) -> tuple[Path, Path]:
    """Draw the memory that stays, the cache that grows, and the writes that happen.

    Returns:
        The PNG and the SVG; the SVG's bytes depend on the run alone.
    """
    style: dict[Any, Any] = {
        "svg.hashsalt": "stategate",
        "font.size": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        memory, writes = figure.subplots(1, 2)
        _draw_memory(memory, run)
        _draw_writes(writes, run)
        for suffix, options in _FILES.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, **options)
            write_whole(stem.with_suffix(suffix), drawn.getvalue())
    return stem.with_suffix(".png"), stem.with_suffix(".svg")


def _label(axes: Axes, text: str, at: tuple[float, float], shift: tuple[int, int], c: str) -> None:
    """Text that ends ``shift`` points away from a place in the plot."""
    axes.annotate(text, at, xytext=shift, textcoords="offset points", ha="right", color=c)


def _draw_memory(axes: Axes, run: Run) -> None:
    steps = [max(1, step) for step in run.timeline.step]
    last, middle = steps[-1], len(steps) // 8
    axes.plot(steps, [run.state_bytes] * len(steps), color=_STATE, lw=2.5)
    text = f"{run.model}: {run.state_bytes:,} bytes, constant"
    _label(axes, text, (last, run.state_bytes), (0, -14), _STATE)
    if run.kv_bytes_per_step is not None:
        cache = [run.kv_bytes_per_step * step for step in steps]
        axes.plot(steps, cache, color=_CACHE, lw=2.5)
        text = f"KV cache, {run.kv_bytes_per_step} bytes a step"
        _label(axes, text, (steps[middle], cache[middle]), (-6, 8), _CACHE)
        if run.kv_over_state is not None:
            halfway = (cache[-1] * run.state_bytes) ** 0.5  # of a logarithmic axis
            _label(axes, f"{run.kv_over_state:,.0f} times", (last, halfway), (-10, 0), "black")
            arrow = {"arrowstyle": "<->", "color": _ALWAYS, "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", (last, cache[-1]), (last, run.state_bytes), arrowprops=arrow)
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.set_title(f"Memory after {run.steps:,} steps (bytes)", loc="left", fontsize=10.5)
    axes.margins(y=0.18)


def _draw_writes(axes: Axes, run: Run) -> None:
    last = run.timeline.step[-1]
    axes.plot(run.timeline.step, run.timeline.step, color=_ALWAYS, lw=1.8, ls="--")
    axes.plot(run.timeline.step, run.timeline.writes, color=_WRITES, lw=2.5)
    axes.annotate("writing always", (last * 0.62, last * 0.66), ha="right", color=_ALWAYS)
    _label(axes, f"{run.writes:,} writes", (last, run.writes), (0, 8), _WRITES)
    ratio = f": {run.write_ratio:.1f} times fewer" if run.write_ratio else ""
    axes.set(xlabel="step")
    axes.set_title(f"Memory writes{ratio}", loc="left", fontsize=10.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
