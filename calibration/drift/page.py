"""The drift report as one self-contained page: tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from stategate.calibration.drift.record import DriftReport, Point
from stategate.common.page import (
    SERIES,
    document,
    items,
    plot_style,
    plots,
    table,
    themed_svg,
)
from stategate.contract.errors import MissingDependencyError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingDependencyError("matplotlib", "bench") from missing

_FLOAT, _CANDIDATE, _THIRD = SERIES[:3]


def page(result: DriftReport) -> str:
    """HTML of a drift report; its bytes depend on the report alone."""
    verdict = "passed" if result.passed else "failed"
    skipped = [f"{name}: {why}" for name, why in result.not_compared.items()]
    title = f"Drift of {result.candidate.model}"
    parts = [
        f'<h1>{escape(title)}: <span class="{verdict}">{verdict}</span></h1>',
        items(result.findings),
        table(("", "float model", "candidate"), _sides(result)),
        "<h2>By step</h2>",
        table(_HEAD, [_row(point) for point in result.milestones]),
        "<p>Errors are in units of the largest magnitude that the float model's tensor reached; "
        "every row counts from the first step.</p>",
        plots(_plots(result)),
        "<h2>Largest norm of each state so far</h2>",
        table(*_norms(result)),
        "<h2>Largest error of each tensor</h2>",
        table(("tensor", "error"), [(n, f"{e:.3g}") for n, e in result.tensors.items()]),
        f"<h2>Not compared</h2>{items(skipped)}" if skipped else "",
    ]
    return document(title, parts)


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
        ("bundle", *(side.digest[:12] for side in sides)),
        ("engine", *(side.engine for side in sides)),
        *([("", "", result.warm_up.words)] if result.warm_up else []),
        ("bytes of state", *(f"{side.state_bytes:,}" for side in sides)),
        ("first decision that differs", "", steps[0]),
        (f"first output error above {result.limits.diverged_above:g}", "", steps[1]),
    ]


def _plots(result: DriftReport) -> list[str]:
    step = [point.step for point in result.samples]

    def errors(axes: Axes) -> None:
        for label, values, colour in (
            ("outputs", [p.recent_output_error for p in result.samples], _CANDIDATE),
            ("states", [p.recent_state_error for p in result.samples], _FLOAT),
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
    with matplotlib.rc_context(plot_style(title)):  # type: ignore[arg-type]
        figure = Figure()
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel("step")
        axes.set_title(title)
        if axes.lines:
            axes.legend()
        return themed_svg(figure, title)
