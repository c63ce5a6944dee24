"""The drift report as one self-contained page: tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from stategate.calibration.drift.record import DriftReport, Point
from stategate.common.page import (
    SERIES,
    Part,
    Verdict,
    items,
    plot_style,
    plots,
    report,
    table,
    themed_svg,
)
from stategate.contract.errors import MissingDependencyError
from stategate.contract.reading import printable

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingDependencyError("matplotlib", "bench") from missing

_FLOAT, _CANDIDATE, _THIRD = SERIES[:3]


def page(result: DriftReport) -> str:
    """HTML of a drift report; its bytes depend on the report alone."""
    return report(f"Drift of {result.candidate.model}", [part(result)])


def part(result: DriftReport, name: str = "") -> Part:
    """A drift report on a page with others; ``name`` tells candidates of one model apart."""
    total, candidate = result.total, result.candidate
    words = "; ".join(result.findings) or (
        f"{total.steps:,} steps within every limit, {total.flips:,} of {total.decisions:,} "
        "decisions differ"
    )
    skipped = [f"{what}: {why}" for what, why in result.not_compared.items()]
    plots_, flat = _plots(result)
    body = (
        table(("", "float model", "candidate"), _sides(result)),
        "<h2>Limits and margins</h2>",
        table(("", "measured", "limit", "of the limit used"), _margins(result)),
        f"<p>{_shown(result.episodes)}</p>",
        "<h2>By step</h2>",
        table(_HEAD, [_row(point) for point in result.milestones]),
        "<p>Errors are in units of the largest magnitude that the float model's tensor reached; "
        "every row counts from the first step.</p>",
        plots(plots_) if plots_ else "",
        items(flat),
        "<h2>Largest norm of each state so far</h2>",
        table(*_norms(result)),
        "<h2>Largest error of each tensor</h2>",
        table(("tensor", "error"), [(n, f"{e:.3g}") for n, e in result.tensors.items()]),
        f"<h2>Not compared</h2>{items(skipped)}" if skipped else "",
    )
    title = f"Drift of {candidate.model}" + (f", {name}" if name else "")
    subject = " ".join(filter(None, (name or candidate.model, candidate.precision)))
    return Part(title, [Verdict(subject, result.passed, words)], body)


def _shown(episodes: Sequence[str]) -> str:
    names = ", ".join(episodes[:8]) + (f" and {len(episodes) - 8} more" if episodes[8:] else "")
    return escape(f"Episodes: {printable(names, 500)}")


def _margins(result: DriftReport) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for what, value, limit in result.measured():
        used = f"{value / limit:.0%}" if limit else "-"
        rows.append((what, f"{value:.3g}", "not judged" if limit is None else f"{limit:g}", used))
    return rows


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


def _norms(result: DriftReport) -> tuple[Sequence[str], list[Sequence[str]]]:
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


def _sides(result: DriftReport) -> list[Sequence[str]]:
    sides = (result.reference, result.candidate)
    first = (result.first_flip, result.first_divergence)
    steps = [f"step {where[0]:,} of {where[1]}" if where else "none" for where in first]
    return [
        ("model", *(side.model for side in sides)),
        ("bundle", *(side.digest[:12] for side in sides)),
        ("precision plan", *(side.precision or "unknown" for side in sides)),
        ("engine", *(side.engine for side in sides)),
        *([("", "", result.warm_up.words)] if result.warm_up else []),
        ("bytes of state", *(f"{side.state_bytes:,}" for side in sides)),
        ("first decision that differs", "", steps[0]),
        (f"first output error above {result.limits.diverged_above:g}", "", steps[1]),
    ]


def _plots(result: DriftReport) -> tuple[list[str], list[str]]:
    """Plots, and in a sentence each what would be one flat line."""
    step = [point.step for point in result.samples]
    figures, flat = [], []

    def draw(title: str, nothing: str, *series: tuple[str, Sequence[float], str]) -> None:
        lines = [line for line in series if any(line[1])]
        if lines:
            figures.append(_plot(title, lambda axes: _lines(axes, step, lines)))
        else:
            flat.append(nothing)

    draw(
        "Largest error between two samples",
        "Outputs and states are equal in every step.",
        ("outputs", [p.recent_output_error for p in result.samples], _CANDIDATE),
        ("states", [p.recent_state_error for p in result.samples], _FLOAT),
    )
    draw(
        "Writes so far, all episodes that reach the step",
        "Neither wrote.",
        ("float model", [p.writes[0] for p in result.samples], _FLOAT),
        ("candidate", [p.writes[1] for p in result.samples], _CANDIDATE),
    )
    draw(
        "Decisions that differ so far",
        "No decision differs.",
        ("flips", [p.flips for p in result.samples], _THIRD),
    )
    return figures, flat


def _lines(axes: Axes, step: Sequence[int], lines: list[tuple[str, Sequence[float], str]]) -> None:
    for (label, values, colour), dashes in zip(lines, ("-", "--"), strict=False):
        axes.plot(step, values, color=colour, label=label, linestyle=dashes)
    if lines[0][0] in ("outputs", "states"):
        axes.set(xscale="log", yscale="log")


def _plot(title: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(plot_style(title)):  # type: ignore[arg-type]
        figure = Figure()
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.legend()
        return themed_svg(figure, title)
