"""The drift report as one self-contained page: tables, and plots that follow light and dark.

Plots are drawn in placeholder colours that become CSS variables, so that one SVG suits both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stategate.calibration.drift_record import Drift, Point

# placeholder drawn -> CSS variable
_INK, _GRID, _FLOAT, _CANDIDATE, _THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _INK: "ink",
    _GRID: "grid",
    _FLOAT: "float",
    _CANDIDATE: "candidate",
    _THIRD: "third",
}
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1c; --grid: #d4d4d4;
  --float: #1b6ca8; --candidate: #c8553d; --third: #2a7f62; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e6e6; --grid: #3c4046;
  --float: #6cb4ee; --candidate: #f08a70; --third: #67c29c; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--grid); text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.failed { color: var(--candidate); } .passed { color: var(--third); }
"""


def page(result: Drift) -> str:
    """HTML of a drift report; its bytes depend on the report alone."""
    verdict = "passed" if result.passed else "failed"
    findings = "".join(f"<li>{escape(text)}</li>" for text in result.findings)
    skipped = "".join(
        f"<li>{escape(name)}: {escape(why)}</li>" for name, why in result.not_compared.items()
    )
    parts = [
        f"<h1>Drift of {escape(result.candidate.model)}: "
        f'<span class="{verdict}">{verdict}</span></h1>',
        f"<ul>{findings}</ul>" if findings else "",
        _table(("", "float model", "candidate"), _sides(result)),
        "<h2>By step</h2>",
        _table(_HEAD, [_row(point) for point in result.milestones]),
        "<p>Errors are in units of the largest magnitude that the float model's tensor reached; "
        "every row counts from the first step.</p>",
        *_plots(result),
        "<h2>Largest norm of each state so far</h2>",
        _table(*_norms(result)),
        "<h2>Largest error of each tensor</h2>",
        _table(("tensor", "error"), [(n, f"{e:.3g}") for n, e in result.tensors.items()]),
        f"<h2>Not compared</h2><ul>{skipped}</ul>" if skipped else "",
    ]
    title = f"Drift of {escape(result.candidate.model)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


_HEAD = (
    "steps",
    "output error",
    "mean",
    "state error",
    "flips",
    "flip rate",
    "writes, float",
    "candidate",
    "norm",
    "right, float",
    "candidate",
)


def _row(point: Point) -> Sequence[str]:
    rates = (f"{rate:.3%}" for rate in point.write_rates)
    right = (f"{share:.2%}" for share in point.accuracies or ())
    return (
        f"{point.step:,}",
        f"{point.output_error:.2g}",
        f"{point.output_error_mean:.2g}",
        f"{point.state_error:.2g}",
        f"{point.flips:,}",
        f"{point.flip_rate:.2g}",
        *rates,
        f"{point.norm_growth:.4f}",
        *(right if point.judged else ("-", "-")),
    )


def _norms(result: Drift) -> tuple[Sequence[str], list[Sequence[str]]]:
    """By horizon, the float model's and the candidate's: what grows beyond its model shows here."""
    names = list(result.total.norms)
    rows: list[Sequence[str]] = [
        (
            f"{point.step:,}",
            *(f"{norm:.5g}" for name in names for norm in point.norms[name]),
        )
        for point in result.milestones
    ]
    return ("steps", *(title for name in names for title in (f"{name}, float", "candidate"))), rows


def _sides(result: Drift) -> list[Sequence[str]]:
    sides = (result.reference, result.candidate)
    first = (result.first_flip, result.first_divergence)
    told = [f"step {where[0]:,} of {where[1]}" if where else "none" for where in first]
    return [
        ("bundle", *(side.digest[:12] for side in sides)),
        ("engine", *(side.engine for side in sides)),
        ("bytes of state", *(f"{side.state_bytes:,}" for side in sides)),
        ("first decision that differs", "", told[0]),
        (f"first output error above {result.limits.diverged_above:g}", "", told[1]),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", head)}{body}</table></div>'


def _plots(result: Drift) -> list[str]:
    step = [point.step for point in result.samples]

    def errors(axes: Axes) -> None:
        for label, values, colour in (
            ("outputs", [p.output_error_here for p in result.samples], _CANDIDATE),
            ("states", [p.state_error_here for p in result.samples], _FLOAT),
        ):
            if any(values):
                axes.plot(step, values, color=colour, label=label)
        axes.set(xscale="log", yscale="log" if axes.lines else "linear")

    def writes(axes: Axes) -> None:
        for side, label, colour, dashes in (
            (0, "float model", _FLOAT, "-"),
            (1, "candidate", _CANDIDATE, "--"),
        ):
            axes.plot(
                step,
                [p.writes[side] for p in result.samples],
                color=colour,
                label=label,
                linestyle=dashes,
            )

    def flips(axes: Axes) -> None:
        axes.plot(step, [p.flips for p in result.samples], color=_THIRD, label="flips")

    return [
        _plot("Largest error between two samples", errors),
        _plot("Writes so far, all episodes that reach the step", writes),
        _plot("Decisions that differ so far", flips),
    ]


def _plot(title: str, draw: Callable[[Axes], None]) -> str:
    style: dict[str, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # identifiers of several plots in one page must differ
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
        "grid.color": _GRID,
        "axes.grid": True,
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        axes.set_xlabel("step")
        axes.set_title(title, loc="left")
        if axes.lines:
            axes.legend(frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups repeat from plot to plot
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return f'<figure role="img" aria-label="{escape(title)}">{svg}</figure>'
