"""``python -m lab plot``: the one picture of a run, for the README."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import matplotlib
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stategate.cli.options import verb
from stategate.cli.show import show_paths
from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError
from stategate.contract.records import load_record

# The picture of a run stands in pages that know no dark mode, so its colours are its own.
_STATE, _CACHE, _WRITES, _ALWAYS = "#1b6ca8", "#c8553d", "#2a7f62", "#8a8a8a"
_FILES: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "dpi": 150, "metadata": {"Software": None}},
    ".svg": {"format": "svg", "metadata": {"Date": None}},
}


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


@verb()
@click.argument("ledger", type=click.Path(path_type=Path))
def plot(ledger: Path) -> None:
    """Draw the memory and the writes of a run next to its LEDGER, as PNG and SVG.

    \b
    Example:
      python -m lab plot build/run/ledger.json
    """
    show_paths(draw_run(read_run(ledger), ledger.with_name("memory")))
