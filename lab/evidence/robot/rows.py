"""What the robot's evidence is kept in: strict records, one row a cell, written when it is done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from lab.evidence.records import read_rows, write_rows

Precision = Literal["float32", "float16", "int8", "int8-fed-back"]


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is run: a policy in one form, in one task.

    Attributes:
        task: Name of the body.
        policy: One of `lab.evidence.robot.policies.POLICIES`.
        seed: Of its training.
        precision: How its guarded states are stored between steps.
        threshold: Of its write gate; None writes always.
        hold: Idle steps between the goal and the way there.
        wiped: Whether its memory is put back to its start when it may move.
    """

    task: str
    policy: str
    seed: int
    precision: Precision
    threshold: float | None
    hold: int
    wiped: bool = False


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of a cell.

    Attributes:
        cell: What was run.
        episodes: Episodes of it, with the same seeds for all cells of a task.
        successes: How many reached the goal.
        writes: Steps that wrote, over all episodes, by the ledger.
        steps: Steps of all episodes, by the ledger.
        written_bytes: State bytes replaced in memory over all episodes, by the ledger.
        state_bytes: Of the bundle.
        engine: What stepped the bundle.
        recipe: Digest of what the row depends on: weights, protocol and number of episodes.
    """

    cell: Cell
    episodes: int
    successes: int
    writes: int
    steps: int
    written_bytes: int
    state_bytes: int
    engine: str
    recipe: str

    def __post_init__(self) -> None:
        """Refuse what no run gives.

        Raises:
            ValueError: Counts contradict each other.
        """
        if not 0 <= self.successes <= self.episodes or not 0 <= self.writes <= self.steps:
            raise ValueError(
                f"{self.successes} successes of {self.episodes} episodes, "
                f"{self.writes} writes of {self.steps} steps"
            )


class Table:
    """Rows in a file: an interrupted run goes on where it stopped.

    Args:
        path: Of the file, which need not be there.

    Raises:
        SpecError: It is there and holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = {row.cell: row for row in read_rows(path, Row)}

    def has(self, cell: Cell, recipe: str) -> bool:
        """Whether there is a row for this cell that nothing has changed since."""
        return cell in self._rows and self._rows[cell].recipe == recipe

    def add(self, row: Row) -> None:
        """Put a row in the place of its cell, and write the file, whole or not at all."""
        self._rows[row.cell] = row
        write_rows(self._path, self._rows.values(), lambda row: _order(row.cell))


def _order(cell: Cell) -> tuple[object, ...]:
    # None has no order among numbers; a logit can be below zero.
    gate = -math.inf if cell.threshold is None else cell.threshold
    return (cell.task, cell.policy, cell.seed, gate, cell.precision, cell.hold, cell.wiped)
