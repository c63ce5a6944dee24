"""The tables of docs/evidence/wrap.md, from its rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from lab.evidence.intervals import over_seeds, wilson
from lab.evidence.pages import COLOURS, Contents, table
from lab.evidence.records import read_rows
from lab.evidence.wrap.rows import Row, Rule
from lab.evidence.wrap.tasks import TASKS

_RULES = ("gate", "always", "never", "random", "periodic")
_DRIVERS = (*_RULES, "actor alone")


def contents(path: Path) -> Contents:
    """Tables of pictures and of the T-maze with its picture, and what was refused."""
    rows = read_rows(path, Row)
    driven = [row for row in rows if row.task == "tmaze" and not row.refusal]
    pictures = [row for row in rows if row.task != "tmaze"]
    refused = [row for row in rows if row.refusal]
    pieces = {
        "wrap-pictures": _pictures([row for row in pictures if not row.refusal]),
        "wrap-tmaze": _driven(driven),
        "wrap-refused": "\n\n".join(map(_refused, refused)) or "None.",
    }
    title = f"T-maze in pictures, a frozen actor with a memory: success ({len(driven)} trainings)"
    return Contents(pieces, {"wrap-tmaze": (title, _over_holds(driven))})


def _pictures(rows: Sequence[Row]) -> str:
    head = ["task", "training", "iterations", "threshold", "steps a write"]
    head += [*_RULES, "gate > 0", "gate > -2", "questions"]
    body = []
    for row in rows:
        score = _error if TASKS[row.task].labels == "numbers" else _share
        body.append(
            [
                TASKS[row.task].title,
                str(row.seed),
                f"{row.iterations:,}",
                f"{row.threshold:g}",
                f"{_fewer(row.rule('gate')):.1f}",
                *(score(row.rule(rule)) for rule in _RULES),
                *(
                    f"{score(row.rule(rule))} at {_fewer(row.rule(rule)):.1f}"
                    for rule in ("gate > 0", "gate > -2")
                ),
                f"{row.rule('gate').judged:,}",
            ]
        )
    return f"{table(head, body)}\n\n{_over_trainings(rows)}"


def _over_trainings(rows: Sequence[Row]) -> str:
    lines = []
    for task in dict.fromkeys(row.task for row in rows):
        same = [row for row in rows if row.task == task]
        fewer = over_seeds([_fewer(row.rule("gate")) for row in same])
        lost = over_seeds([row.rule("always").score - row.rule("gate").score for row in same])
        if fewer is None or lost is None:
            continue
        if TASKS[task].labels == "numbers":
            words = f"error {-lost.estimate:.4f} more ({-lost.high:.4f} to {-lost.low:.4f})"
        else:
            words = (
                f"{100 * lost.estimate:.2f} points lost "
                f"({100 * lost.low:.2f} to {100 * lost.high:.2f})"
            )
        lines.append(
            f"- {TASKS[task].title}, {len(same)} trainings: {fewer.estimate:.1f} times fewer "
            f"writes ({fewer.low:.1f} to {fewer.high:.1f}), {words}"
        )
    return "\n".join(lines)


def _driven(rows: Sequence[Row]) -> str:
    body = []
    for hold in _holds(rows):
        gates = [row.rule("gate", hold) for row in rows]
        writes = ", ".join(f"{_fewer(gate):.1f}" for gate in gates)
        cells = [_reached([row.rule(rule, hold) for row in rows]) for rule in _DRIVERS]
        body.append([f"{hold:,}", writes, *cells])
    return table(["steps held", "steps a write of the gate's", *_DRIVERS], body)


def _reached(same: Sequence[Rule]) -> str:
    """Successes of each training, and the mean share with its interval."""
    successes = ", ".join(str(round(rule.score * rule.judged)) for rule in same)
    interval = over_seeds([rule.score for rule in same])
    if interval is None:
        interval = wilson(round(same[0].score * same[0].judged), same[0].judged)
        return f"{successes} ({interval.low:.2f}-{interval.high:.2f})"
    return f"{successes} ({interval.estimate:.2f} ± {interval.high - interval.estimate:.2f})"


def _over_holds(rows: Sequence[Row]) -> Callable[[Axes], None]:
    """Success against hold: a line over the means, a point for each training."""

    def draw(axes: Axes) -> None:
        holds = _holds(rows)
        for i, (rule, colour) in enumerate(zip(_DRIVERS, COLOURS, strict=False)):
            # Side by side, or equal ones would hide each other; 0 has a place on a logarithm too.
            at = [max(hold, 10) * 1.04 ** (i - len(_DRIVERS) / 2) for hold in holds]
            scores = [[row.rule(rule, hold).score for row in rows] for hold in holds]
            axes.plot(at, [fmean(of) for of in scores], color=colour, label=rule)
            for x, of in zip(at, scores, strict=True):
                axes.plot([x] * len(of), of, ".", color=colour, ms=5)
        axes.set(xscale="log", ylim=(-0.05, 1.05), xlabel="idle steps held", ylabel="success")
        axes.set_xticks([max(hold, 10) for hold in holds], [f"{hold:,}" for hold in holds])
        axes.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw


def _holds(rows: Sequence[Row]) -> list[int]:
    """Those that every training was judged at."""
    judged = [{rule.hold for rule in row.rules if rule.hold is not None} for row in rows]
    return sorted(set.intersection(*judged)) if judged else []


def _refused(row: Row) -> str:
    title = TASKS[row.task].title if row.task in TASKS else "T-maze"
    text = "\n".join(f"    {line}" for line in row.refusal.splitlines())
    return f"{title}, training {row.seed}:\n\n{text}"


def _fewer(rule: Rule) -> float:
    return 1 / max(rule.write_rate, 1e-9)


def _share(rule: Rule) -> str:
    return f"{rule.score:.2%}"


def _error(rule: Rule) -> str:
    return f"{rule.score:.3f} off"
