"""What the page says of the growing cache and of the bound on the loss of value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from lab.evidence.memory.bound import Bounds
from lab.evidence.memory.cache import CacheRow
from lab.evidence.pages import COLOURS, Contents, table
from lab.evidence.records import read_rows


def of_cache(results: Path) -> Contents:
    """The table of the growing cache, and its picture.

    Args:
        results: Rows of `lab.evidence.memory.cache`.

    Raises:
        SpecError: The file does not hold such rows.
    """
    grown = read_rows(results, CacheRow)
    pictures = {"evidence-cache": ("Step time against the steps so far", _draw(grown))}
    return Contents({"memory-cache": _cache(grown)}, pictures if grown else {})


def of_bound(results: Path) -> Contents:
    """The table of the bound.

    Args:
        results: Rows of `lab.evidence.memory.bound`.

    Raises:
        SpecError: The file does not hold such rows.
    """
    return Contents({"memory-bound": _bound(read_rows(results, Bounds))}, {})


def _cache(rows: Sequence[CacheRow]) -> str:
    def cells_of(row: CacheRow) -> list[str]:
        low, high = row.p50_us_range
        return [
            f"{row.bytes:,}",
            f"{row.resident_bytes / 1e6:.1f} MB",
            f"{row.p50_us:.1f} us ({low:.1f} to {high:.1f})",
        ]

    by = {(row.what, row.steps): row for row in rows}
    lengths = sorted({row.steps for row in rows})
    head = ["steps so far"]
    head += [f"{what}: {one}" for what in ("memory", "cache") for one in ("bytes", "grown", "p50")]
    body = [
        [f"{steps:,}", *cells_of(by["memory", steps]), *cells_of(by["cache", steps])]
        for steps in lengths
    ]
    machines = ", ".join(sorted({row.machine for row in rows}))
    return f"{table(head, body)}\n\nMeasured on: {machines}."


def _bound(bundles: Sequence[Bounds]) -> str:
    head = ["reading", "horizon", "epsilon", "delta", "loses at most", "of", "", "lost, measured"]
    parts = []
    for one in bundles:
        rows = [
            [
                row.reading,
                f"{row.horizon:,}",
                f"{row.epsilon:.2g}",
                f"{row.delta:.2g}",
                f"{row.bound:,.3g}",
                f"{row.earned_at_best:,.3g}",
                "vacuous" if row.vacuous else "",
                f"{row.lost:,.2g}",
            ]
            for row in one.rows
        ]
        text = f"{one.bundle}, {one.steps:,} steps of *{one.config}*, {one.asked:,} queries, "
        parts.append(f"{text}{one.accuracy:.2%} right:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _draw(rows: Sequence[CacheRow]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for what, label, colour in (
            ("cache", "attention over a cache of equal width, NumPy", COLOURS[1]),
            ("memory", "Session.step, constant memory", COLOURS[0]),
        ):
            of = [row for row in rows if row.what == what]
            p50 = [row.p50_us for row in of]
            below = [row.p50_us - row.p50_us_range[0] for row in of]
            above = [row.p50_us_range[1] - row.p50_us for row in of]
            axes.errorbar(
                [r.steps for r in of], p50, [below, above], fmt="o-", color=colour, label=label
            )
        axes.set(xscale="log", yscale="log", xlabel="steps so far", ylabel="p50 of a step, us")
        axes.legend()

    return draw
