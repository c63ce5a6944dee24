"""What the robot's evidence is kept in: strict records, one row a cell, written when it is done."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Literal

import msgspec

from stategate.contract.console import write_whole
from stategate.contract.errors import EpisodeError

Precision = Literal["float32", "float16", "int8", "int8-fed-back"]


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """What is run: a policy in one form, in one task.

    Attributes:
        task: Name of the body.
        policy: One of `evidence.robot_policies.POLICIES`.
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
        recipe: Digest of what the row depends on: training, weights, task and number of episodes.
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


def digest(*parts: object) -> str:
    """Twelve digits that change with any of the parts, which msgspec can encode."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:12]


def interval(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % interval of a rate after E. B. Wilson (JASA 22, 1927, 209-212).

    The rates p with ``|successes / n - p| <= z sqrt(p (1 - p) / n)``, the roots of a quadratic.
    """
    z, n = 1.959963984540054, episodes
    rate = successes / n
    middle = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


class Table:
    """Rows in a file: an interrupted run goes on where it stopped.

    Args:
        path: Of the file, which need not be there.

    Raises:
        EpisodeError: It is there and is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[Cell, Row] = {}
        try:
            rows = msgspec.json.decode(path.read_bytes(), type=list[Row])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as problem:
            raise EpisodeError(
                "the results cannot be read",
                found=f"{path}: {problem}",
                expected="a list of rows, as this command writes them",
                remedy="restore the file, or move it away to run every cell again",
            ) from problem
        self._rows = {row.cell: row for row in rows}

    @property
    def rows(self) -> list[Row]:
        """All rows in the order of their cells."""
        return sorted(self._rows.values(), key=lambda row: _order(row.cell))

    def has(self, cell: Cell, recipe: str) -> bool:
        """Whether there is a row for this cell that nothing has changed since."""
        return cell in self._rows and self._rows[cell].recipe == recipe

    def add(self, row: Row) -> None:
        """Put a row in the place of its cell, and write the file, whole or not at all."""
        self._rows[row.cell] = row
        lines = ",\n".join(msgspec.json.encode(row).decode() for row in self.rows)
        write_whole(self._path, f"[\n{lines}\n]\n".encode())


def _order(cell: Cell) -> tuple[object, ...]:
    values: list[object] = list(msgspec.structs.astuple(cell))
    at = Cell.__struct_fields__.index("threshold")
    values[at : at + 1] = [cell.threshold is not None, cell.threshold or 0.0]
    return tuple(values)
