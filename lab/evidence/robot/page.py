"""Tables and pictures of the robot's evidence, from its rows alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.evidence.intervals import over_seeds, wilson
from lab.evidence.pages import filled
from lab.evidence.robot.cells import FORMS, HOLDS, TITLES, Form
from lab.evidence.robot.policies import POLICIES
from lab.evidence.robot.rows import Row
from stategate.contract.durable import write_whole

_COLOURS = ("#1b6ca8", "#c8553d", "#2a7f62", "#8a5a00", "#7b4fa3", "#3b3b3b", "#b8468c", "#5aa9e6")
# By whether a memory is wiped, and whether it is written always.
_DASHES = {(True, True): ":", (False, True): "-", (False, False): "--"}


def on_page(page: str, rows: Sequence[Row]) -> str:
    """A page with its tables replaced, between two comments.

    Raises:
        SpecError: The comments are not there, or not once each and in order.
    """
    tables = "\n".join(_tables(task, rows) for task in TITLES if _of(rows, task=task))
    return filled(page, {"robot-tables": tables.strip()})


def draw(task: str, rows: Sequence[Row], path: Path) -> None:
    """Draw success against hold as SVG, a panel for each policy, of its first training.

    Args:
        task: Name of the body.
        rows: Those of other tasks are passed over.
        path: Of the picture.
    """
    rows = _of(rows, task=task, seed=0)
    policies = [p for p in POLICIES if _of(rows, policy=p)]
    style: dict[Any, Any] = {"svg.hashsalt": task, "font.size": 9.0, "axes.spines.top": False}
    with matplotlib.rc_context({**style, "axes.spines.right": False}):
        lines = min(2, len(policies))
        columns = -(-len(policies) // lines)
        figure = Figure(figsize=(5.2 * columns, 3.2 * lines), layout="constrained")
        panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
        for panel in panels[len(policies) :]:
            panel.remove()
        for panel, policy in zip(panels, policies, strict=False):
            _draw_policy(panel, _of(rows, policy=policy))
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_whole(path, drawn.getvalue())


def _draw_policy(axes: Axes, rows: Sequence[Row]) -> None:
    forms = [form for form in _forms(rows) if _main(form)]
    for i, (form, colour) in enumerate(zip(forms, _COLOURS, strict=False)):
        by_hold = _by_hold(rows, form)
        at = [_spread(hold) * 1.03 ** (i - len(forms) / 2) for hold in by_hold]
        intervals = [wilson(row.successes, row.episodes) for (row,) in by_hold.values()]
        # An end of the interval is the rate itself at 0 and 1, give or take its rounding.
        below = [max(0.0, f.estimate - f.low) for f in intervals]
        above = [max(0.0, f.high - f.estimate) for f in intervals]
        dashes = _DASHES[form.wiped, form.threshold is None]
        axes.errorbar(
            at, [f.estimate for f in intervals], yerr=[below, above], color=colour, lw=1.3,
            elinewidth=0.6, marker="o", ms=3, ls=dashes, label=_describe(form),
        )  # fmt: skip
    axes.set(xscale="log", ylim=(-0.05, 1.05), xlabel="idle steps held", ylabel="success")
    axes.set_xticks([_spread(hold) for hold in HOLDS], [f"{hold:,}" for hold in HOLDS])
    axes.minorticks_off()
    axes.set_title(rows[0].cell.policy, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _spread(hold: int) -> float:
    return max(hold, 10)  # no hold has a place on a logarithmic axis too


def _tables(task: str, rows: Sequence[Row]) -> str:
    rows = _of(rows, task=task)
    holds = sorted({row.cell.hold for row in rows})
    episodes = " or ".join(map(str, sorted({row.episodes for row in rows})))
    lines = [
        f"### {TITLES[task]}\n",
        f"Engine: {', '.join(sorted({row.engine for row in rows}))}. "
        f"Each cell: successes of {episodes} episodes (their share, 95 % interval by Wilson); "
        "steps of an episode that wrote. Of several trainings, the successes of each (mean share "
        "± half of Student's interval over them: 0 where all are alike, which says nothing of "
        "episodes). Written: bytes of all states that a step replaced, over the longest hold.\n",
        "| policy | writes when | state | bytes | written | "
        + " | ".join(f"hold {hold:,}" for hold in holds) + " |",
        "|---|---|---|---|---|" + "---|" * len(holds),
    ]  # fmt: skip
    for form in _forms(rows):
        cells = _by_hold(rows, form)
        gate = "always" if form.threshold is None else f"gate > {form.threshold:g}"
        longest = cells[max(cells)]
        shown = [_cell(cells[hold]) if hold in cells else "" for hold in holds]
        name = form.policy + (", wiped at go" if form.wiped else "")
        written = fmean(row.written_bytes / row.steps for row in longest)
        facts = [name, gate, form.precision, f"{longest[0].state_bytes:,}", f"{written:,.0f}"]
        lines.append(f"| {' | '.join([*facts, *shown])} |")
    picture = f"../images/robot-{task}.svg"
    return "\n".join([*lines, "", f"![Success against hold, {TITLES[task]}]({picture})", ""])


def _cell(rows: Sequence[Row]) -> str:
    successes = ", ".join(str(row.successes) for row in rows)
    interval = over_seeds([row.successes / row.episodes for row in rows])
    if interval is None:
        only = wilson(rows[0].successes, rows[0].episodes)
        share = f"{only.low:.2f}-{only.high:.2f}"
    else:
        share = f"{interval.estimate:.2f} ± {interval.high - interval.estimate:.2f}"
    return f"{successes} ({share}); {fmean(r.writes / r.episodes for r in rows):,.0f}"


def _form(row: Row) -> Form:
    cell = row.cell
    return Form(cell.policy, cell.threshold, cell.precision, cell.wiped)


def _forms(rows: Iterable[Row]) -> list[Form]:
    """Forms that have a row, in the order in which they are listed."""
    present = {_form(row) for row in rows}
    return [form for form in FORMS if form in present]


def _by_hold(rows: Iterable[Row], form: Form) -> dict[int, list[Row]]:
    """Its rows, one a training, by hold."""
    holds: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.cell.hold, row.cell.seed)):
        if _form(row) == form:
            holds.setdefault(row.cell.hold, []).append(row)
    return holds


def _main(form: Form) -> bool:
    """Whether a form is in the picture: every storage, and every threshold in float32."""
    return form.threshold is None or form.precision == "float32"


def _describe(form: Form) -> str:
    gate = "" if form.threshold is None else f", gate > {form.threshold:g}"
    return f"{form.precision}{gate}{', wiped' if form.wiped else ''}"


def _of(rows: Iterable[Row], **fields: object) -> list[Row]:
    return [r for r in rows if all(getattr(r.cell, k) == v for k, v in fields.items())]
