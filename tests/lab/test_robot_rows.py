"""Rows of the robot's evidence: strict, resumable, in one order."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lab.evidence.records import read_rows
from lab.evidence.robot.rows import Cell, Row, Table
from stategate.contract.errors import SpecError

CELL = Cell("tmaze", "gru", 0, "float32", None, 40)


def row(cell: Cell = CELL, recipe: str = "a", successes: int = 3) -> Row:
    return Row(cell, 4, successes, 10, 20, 2560, 256, "onnxruntime", recipe)


def test_a_row_is_kept_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Table(path).add(row())
    again = Table(path)
    assert again.has(CELL, "a")
    assert not again.has(CELL, "b")
    again.add(row(recipe="b", successes=1))
    assert [r.successes for r in read_rows(path, Row)] == [1]


def test_rows_are_in_the_order_of_their_cells_whatever_came_first(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows.json")
    cells = [
        CELL,
        msgspec.structs.replace(CELL, wiped=True),
        msgspec.structs.replace(CELL, hold=150),
        msgspec.structs.replace(CELL, precision="int8"),
        msgspec.structs.replace(CELL, threshold=-2.0),
        msgspec.structs.replace(CELL, threshold=0.1),
    ]
    for cell in reversed(cells):
        table.add(row(cell))
    assert [r.cell for r in read_rows(tmp_path / "rows.json", Row)] == cells


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
        with pytest.raises(SpecError, match="does not hold results"):
            Table(path)
