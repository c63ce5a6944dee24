"""Options of the wrong kind are refused in a sentence, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stategate.contract.errors import SpecError
from stategate.runtime import Pool, Session, SnapshotPolicy
from stategate.runtime.keep.black_box import BlackBox


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda at: Session.open(at, chain="yes"), "chain is of the wrong kind"),
        (lambda at: Session.open(at, rewind="yes"), "rewind is of the wrong kind"),
        (lambda at: Session.open(at, black_box=5), "black_box is of the wrong kind"),
        (lambda at: Session.open(at, snapshots=5), "snapshots is of the wrong kind"),
        (lambda at: Session.open(at, budget={"deadline_ms": 3}), "budget is of the wrong kind"),
        (lambda at: Session.open(at, clock=5), "clock is of the wrong kind"),
        (lambda at: Session.open(at, engine=5), "engine is of the wrong kind"),
        (lambda at: Session.open(at, on_fault=None), "'raise' or 'hold' or 'reset'"),
        (lambda at: Pool.open(at, clock=5), "clock is of the wrong kind"),
        (lambda at: Pool.open(at, 5), "engine is of the wrong kind"),
        (lambda at: Pool.open(at, trust=5), "trust is of the wrong kind"),
        (lambda at: SnapshotPolicy(at, journal="yes"), "journal is of the wrong kind"),
        (lambda at: SnapshotPolicy(at, every_writes="5"), "every_writes must be a whole number"),
        (lambda at: SnapshotPolicy(at, every_writes=True), "every_writes must be a whole number"),
        (lambda at: SnapshotPolicy(at, every_seconds="1"), "every_seconds must be positive"),
        (lambda at: SnapshotPolicy(5), "folder is of the wrong kind"),
        (lambda at: BlackBox(5), "path is of the wrong kind"),
        (lambda at: BlackBox(at, minutes=True), "minutes must be positive"),
        (lambda at: BlackBox(at, file_bytes=2.5e6), "file_bytes must be a whole number"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_by_name(
    call: Any, word: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=word):
        call(tmp_path / "nothing")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    assert SnapshotPolicy(tmp_path, every_writes=np.int64(3), every_seconds=np.float32(2))  # type: ignore[arg-type]
