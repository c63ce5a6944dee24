"""The plots of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stategate.bench.record import BINS_PER_OCTAVE, BenchResult, Subject, Times
from stategate.common.page import GRID, INK, SERIES, plot_style, themed_svg

_HORIZON = 100_000
_MOST_LINES = len(SERIES)


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

    def rate(subject: Subject) -> np.ndarray:
        done = (subject.rounds.steps, subject.rounds.writes)
        steps, wrote = (np.diff(np.array((0, *values))) for values in done)
        share: np.ndarray = 100 * wrote / steps / subject.sessions
        return share

    def writes(axes: Axes) -> None:
        for subject, colour in zip(shown, SERIES, strict=False):
            axes.plot(subject.rounds.at_s, rate(subject), color=colour, label=subject.name)
        axes.set(xlabel="seconds", ylabel="% of steps that wrote")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # a steady rate is no part of the frame

    return [
        _plot("How long steps took", density),
        _plot("The tail", tail),
        _plot(f"{len(first.excerpt_us)} steps of {first.name}, one by one", excerpt),
        _plot("Over the whole time", whole),
        # A rate that never changes is in the ledger's table, and no plot.
        *(
            [_plot("Writes over the whole time", writes)]
            if any(np.ptp(rate(subject)) > 0 for subject in shown)
            else []
        ),
    ]


def memory_plots(result: BenchResult) -> tuple[str, ...]:
    """What the memory takes after so many steps; computed, and said so.

    Nothing where it replaces no cache: the states alone are one flat line.
    """
    if all(subject.kv_bytes_per_step is None for subject in result.subjects):
        return ()
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

    return (_plot("Memory against horizon (computed)", draw),)


def histogram(
    title: str, unit: str, series: Sequence[tuple[str, np.ndarray]], log: bool = False
) -> str:
    """How figures of several groups lie, by group; with ``log`` in equal ratios."""

    def draw(axes: Axes) -> None:
        every = np.concatenate([values for _, values in series])
        bounds = np.histogram_bin_edges(np.log(every) if log else every, 40)
        bounds = np.exp(bounds) if log else bounds
        for (name, values), colour in zip(series, SERIES, strict=False):
            axes.stairs(np.histogram(values, bounds)[0], bounds, color=colour, label=name)
        axes.set(xlabel=unit, ylabel="robots", yscale="symlog", xscale="log" if log else "linear")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter("{x:g}")

    return _plot(title, draw)


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
