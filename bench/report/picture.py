"""One picture of a run: the memory that stays, the cache that grows, the writes that happen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
from matplotlib.figure import Figure

from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError
from stategate.contract.reading import read_json

_FORMATS: tuple[dict[str, Any], ...] = (
    {"format": "png", "dpi": 150, "metadata": {"Software": None}},
    {"format": "svg", "metadata": {"Date": None}},
)
_STATE, _CACHE, _WRITES, _ALWAYS = "#1b6ca8", "#c8553d", "#2a7f62", "#8a8a8a"


class Timeline(msgspec.Struct, frozen=True):
    """Samples over the horizon."""

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
    """Read a ledger.

    Raises:
        EpisodeError: It is missing, or no run wrote it.
    """
    try:
        return read_json(path, Run)
    except (OSError, msgspec.MsgspecError) as problem:
        raise EpisodeError(
            "this is not the ledger of a run",
            found=f"{path}: {problem}",
            remedy="make one with: stategate run BUNDLE --out DIR",
        ) from problem


def draw(run: Run, stem: Path) -> tuple[Path, Path]:
    """Draw a run.

    Args:
        run: What to draw.
        stem: Path without suffix.

    Returns:
        The PNG and the SVG; the SVG's bytes depend on the run alone.
    """
    style: dict[Any, Any] = {
        "svg.hashsalt": "stategate",
        "font.size": 10.0,
        "axes.spines.top": False,
    }
    with matplotlib.rc_context({**style, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        memory, writes = figure.subplots(1, 2)
        _draw_memory(memory, run)
        _draw_writes(writes, run)
        paths = stem.with_suffix(".png"), stem.with_suffix(".svg")
        for path, options in zip(paths, _FORMATS, strict=True):
            drawn = io.BytesIO()
            figure.savefig(drawn, **options)
            write_whole(path, drawn.getvalue())
    return paths


def _draw_memory(axes: matplotlib.axes.Axes, run: Run) -> None:
    steps = [max(1, step) for step in run.timeline.step]
    axes.plot(steps, [run.state_bytes] * len(steps), color=_STATE, lw=2.5)
    axes.annotate(
        f"{run.model}: {run.state_bytes:,} bytes, constant",
        (steps[-1], run.state_bytes),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
        color=_STATE,
    )
    if run.kv_bytes_per_step is not None:
        cache = [run.kv_bytes_per_step * step for step in steps]
        axes.plot(steps, cache, color=_CACHE, lw=2.5)
        axes.annotate(
            f"KV cache, {run.kv_bytes_per_step} bytes a step",
            (steps[len(steps) // 8], cache[len(steps) // 8]),
            xytext=(-6, 8),
            textcoords="offset points",
            ha="right",
            color=_CACHE,
        )
        if run.kv_over_state is not None:
            axes.annotate(
                f"{run.kv_over_state:,.0f} times",
                (steps[-1], (cache[-1] * run.state_bytes) ** 0.5),
                xytext=(-10, 0),
                textcoords="offset points",
                ha="right",
            )
            axes.annotate(
                "",
                (steps[-1], cache[-1]),
                (steps[-1], run.state_bytes),
                arrowprops={"arrowstyle": "<->", "color": _ALWAYS, "shrinkA": 4, "shrinkB": 4},
            )
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.set_title(f"Memory after {run.steps:,} steps (bytes)", loc="left", fontsize=10.5)
    axes.margins(y=0.18)


def _draw_writes(axes: matplotlib.axes.Axes, run: Run) -> None:
    axes.plot(run.timeline.step, run.timeline.step, color=_ALWAYS, lw=1.8, ls="--")
    axes.plot(run.timeline.step, run.timeline.writes, color=_WRITES, lw=2.5)
    last = run.timeline.step[-1]
    axes.annotate("writing always", (last * 0.62, last * 0.66), ha="right", color=_ALWAYS)
    axes.annotate(
        f"{run.writes:,} writes",
        (last, run.writes),
        xytext=(0, 8),
        textcoords="offset points",
        ha="right",
        color=_WRITES,
    )
    ratio = f": {run.write_ratio:.1f} times fewer" if run.write_ratio else ""
    axes.set(xlabel="step")
    axes.set_title(f"Memory writes{ratio}", loc="left", fontsize=10.5)
    thousands = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
