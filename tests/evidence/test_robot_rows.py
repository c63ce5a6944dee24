"""Rows of the robot's evidence: strict, resumable, with the interval of their rate."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from evidence.robot_rows import Cell, Row, Table, digest, interval
from stategate.contract.errors import EpisodeError

CELL = Cell("tmaze", "gru", 0, "float32", None, 40)


def row(cell: Cell = CELL, recipe: str = "a", successes: int = 3) -> Row:
    return Row(cell, 4, successes, 10, 20, 2560, 256, "onnxruntime", recipe)


def test_the_interval_is_that_of_the_textbook() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    for successes, episodes, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert interval(successes, episodes) == pytest.approx((low, high), abs=6e-5)


def test_an_interval_ends_where_the_rate_is_just_not_refuted() -> None:
    for end in interval(33, 40):
        gap = abs(33 / 40 - end)
        assert gap == pytest.approx(1.959964 * (end * (1 - end) / 40) ** 0.5, rel=1e-6)


def test_a_row_is_kept_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Table(path).add(row())
    again = Table(path)
    assert again.has(CELL, "a")
    assert not again.has(CELL, "b")
    again.add(row(recipe="b", successes=1))
    assert [r.successes for r in Table(path).rows] == [1]


def test_rows_are_in_the_order_of_their_cells_whatever_came_first(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows.json")
    cells = [
        CELL,
        msgspec.structs.replace(CELL, wiped=True),
        msgspec.structs.replace(CELL, hold=150),
        msgspec.structs.replace(CELL, threshold=-2.0),
        msgspec.structs.replace(CELL, threshold=0.1),
    ]
    for cell in reversed(cells):
        table.add(row(cell))
    assert [r.cell for r in Table(tmp_path / "rows.json").rows] == cells


def test_a_file_that_holds_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Table(path).add(row())
    whole = path.read_text()
    for damage in (
        whole[:-9],
        whole.replace('"hold":40', '"hold":"long"'),
        whole.replace('"hold"', '"held"'),
        whole.replace('"successes":3', '"successes":5'),
        whole.replace('"writes":10', '"writes":21'),
    ):
        path.write_text(damage)
        with pytest.raises(EpisodeError, match="results cannot be read"):
            Table(path)


def test_a_digest_changes_with_every_part() -> None:
    assert len({digest("a", 40), digest("a", 41), digest("b", 40), digest("a", 40, 1)}) == 4
