"""The short tables and the pictures of docs/evidence/index.md, which is read in ten minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lab.evidence.controlled.arms import ARMS, DEPLOYED
from lab.evidence.controlled.page import accuracy, blind, interference, size_of, spread, targets
from lab.evidence.controlled.pictures import by_writes, over_horizons, over_sessions
from lab.evidence.controlled.rows import Row, shown
from lab.evidence.controlled.streams import HORIZONS
from lab.evidence.controlled.values import ByValue
from lab.evidence.pages import Contents, table
from lab.evidence.records import read_rows

_MODELS = (
    "longer", "always-longer", "foresight", "gated-delta", "linear-attention", "mlstm", "rwkv7",
    "trim-kv", "mingru-1056", "lstm-64", "cache", "surprise", "random", "periodic",
)  # fmt: skip
_SESSIONS = (0, 1, 3, 5, 7)
_SAME = ("steps", "steps per event", "per event that is asked for")
_LONGEST = HORIZONS[-1][0]


def contents(results: Path, values: Path) -> Contents:
    """Four of the five tables, and three of the four pictures.

    Args:
        results: Rows of `Row`.
        values: Rows of `ByValue`.

    Raises:
        SpecError: A file does not hold rows.
    """
    rows = read_rows(results, Row)
    return Contents(
        {
            "story-models": _models(rows),
            "story-targets": _targets(rows),
            "story-interference": interference(rows, _SESSIONS),
            "story-blind": blind(read_rows(values, ByValue)),
        },
        {
            "evidence-horizon": ("Errors, hard: means and single trainings", over_horizons(rows)),
            "evidence-writes": ("Errors against writes, hard, 16,384 steps", by_writes(rows)),
            "evidence-interference": (
                "Answers about a lesson after sessions about other things",
                over_sessions(rows),
            ),
        },
    )


def _models(rows: Sequence[Row]) -> str:
    head = ["model", "n", "1,024 steps", f"{_LONGEST:,} steps", "steps per write", "state bytes"]
    lines = []
    for name, of in shown(rows, _MODELS):
        ratios = [row.at[-1].ratio for row in of]
        writes = spread(ratios, 2) if fmean(ratios) > 1 else "1"
        figures = [accuracy(of, 1024), accuracy(of, _LONGEST)]
        lines.append([name, str(len(of)), *figures, writes, size_of(of)])
    absent = [ARMS[arm].says for arm in _MODELS if not any(row.arm == arm for row in rows)]
    return table(head, lines) + (f"\n\nStill to come: {'; '.join(absent)}." if absent else "")


def _targets(rows: Sequence[Row]) -> str:
    """Without what is the same in every line."""
    head, lines = targets(rows, ("learned", "tutored", "longer"), (DEPLOYED, 0.0), (_LONGEST,))
    places = [i for i, name in enumerate(head) if name not in _SAME]
    return table([head[i] for i in places], [[line[i] for i in places] for line in lines])
