"""The tables of docs/evidence/wrap.md, from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.evidence.intervals import over_seeds, wilson
from lab.evidence.pages import Contents, table
from lab.evidence.records import read_rows
from lab.evidence.wrap.rows import Row, Rule
from lab.evidence.wrap.tasks import TASKS

_RULES = ("gate", "always", "never", "random", "periodic")


def contents(path: Path) -> Contents:
    """Tables of pictures and of the T-maze, and what was refused."""
    rows = read_rows(path, Row)
    driven = [row for row in rows if row.task == "tmaze"]
    pictures = [row for row in rows if row.task != "tmaze"]
    refused = [row for row in rows if row.refusal]
    pieces = {
        "wrap-pictures": _pictures([row for row in pictures if not row.refusal]),
        "wrap-tmaze": _driven([row for row in driven if not row.refusal]),
        "wrap-refused": "\n\n".join(map(_refused, refused)) or "None.",
    }
    return Contents(pieces, {})


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
    rules = (*_RULES, "actor alone")
    body = []
    for row in rows:
        for hold in sorted({rule.hold for rule in row.rules if rule.hold is not None}):
            gate = row.rule("gate", hold)
            driven = {rule.rule: rule for rule in row.rules if rule.hold == hold}
            body.append(
                [
                    str(row.seed),
                    str(hold),
                    f"{_fewer(gate):.1f}",
                    *(_reached(driven[rule]) if rule in driven else "" for rule in rules),
                    "{:.0%} to {:.0%}".format(
                        *wilson(round(gate.score * gate.judged), gate.judged)[1:]
                    ),
                ]
            )
    head = ["training", "steps held", "steps a write", *rules, "interval of the gate's"]
    return table(head, body)


def _refused(row: Row) -> str:
    title = TASKS[row.task].title if row.task in TASKS else "T-maze"
    text = "\n".join(f"    {line}" for line in row.refusal.splitlines())
    return f"{title}, training {row.seed}:\n\n{text}"


def _reached(rule: Rule) -> str:
    return f"{round(rule.score * rule.judged)} of {rule.judged}"


def _fewer(rule: Rule) -> float:
    return 1 / max(rule.write_rate, 1e-9)


def _share(rule: Rule) -> str:
    return f"{rule.score:.2%}"


def _error(rule: Rule) -> str:
    return f"{rule.score:.3f} off"
