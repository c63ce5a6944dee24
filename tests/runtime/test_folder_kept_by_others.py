"""A snapshot folder that cannot be written, and one whose budget somebody else uses up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Budget, Bundle
from stategate.contract.errors import SnapshotError
from stategate.runtime import Pool, Session
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.keep.snapshot import Codec

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)


def mount_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse every opening that could change a file, as a read-only mount does."""
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("pathlib.Path.touch", lambda path, **_: refuse(str(path), os.O_CREAT))


def test_a_card_that_is_mounted_read_only_gives_its_snapshot_back_and_takes_none(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.step(x=OPEN)
        session.save()
        remembered = session.state("h").tobytes()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    mount_read_only(monkeypatch)
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        assert session.restore() is not None
        assert session.state("h").tobytes() == remembered
        session.step(x=OPEN)
        with pytest.raises(SnapshotError, match="Read-only file system"):
            session.save()
        with pytest.raises(SnapshotError, match="in use"):
            Session.open(tiny_bundle, snapshots=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_pool_row_of_a_read_only_card_restores_too(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.step(x=OPEN)
        session.save()
        remembered = session.state("h").tobytes()
    mount_read_only(monkeypatch)
    with Pool.open(tiny_bundle) as pool:
        row = pool.join()
        assert pool.restore(row, tmp_path) is not None
        assert pool.state(row, "h").tobytes() == remembered
        with pytest.raises(SnapshotError, match="Read-only file system"):
            pool.save(row, tmp_path)


def test_what_a_pool_saves_is_missing_in_the_wear_budget_of_the_folder(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    cost = Codec(Bundle.open(tiny_bundle).manifest).cost_bytes
    budget = Budget(persisted_bytes_per_day=3.0 * cost)

    def session() -> Session:
        return Session.open(tiny_bundle, snapshots=tmp_path, budget=budget, clock=ManualClock())

    with session() as first:
        assert first.save() == 1
    with Pool.open(tiny_bundle) as pool:
        row = pool.join()
        pool.restore(row, tmp_path)
        before = pool.ledger(row).persisted_bytes
        assert pool.save(row, tmp_path) == 2
        assert pool.ledger(row).persisted_bytes > before
    with session() as last:
        assert last.save() == 3
        assert last.save() is None  # three were allowed, whoever wrote them


def test_a_pool_makes_no_account_in_a_folder_without_a_budget(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with Pool.open(tiny_bundle) as pool:
        pool.save(pool.join(), tmp_path)
    assert not (tmp_path / "account").exists()


def test_a_save_that_the_account_refuses_does_not_count_twice_what_others_stepped(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with Pool.open(tiny_bundle) as pool:
        row = pool.join()
        for _ in range(5):
            pool.step(x=OPEN)
        pool.save(row, tmp_path)
        budget = Budget(persisted_bytes_per_day=1e9)
        with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as other:
            other.restore()
            for _ in range(7):
                other.step(x=OPEN)
            other.save()
        (tmp_path / "account").unlink()
        (tmp_path / "account").mkdir()  # nothing can be charged there
        for _ in range(2):
            with pytest.raises(SnapshotError):
                pool.save(row, tmp_path)
        (tmp_path / "account").rmdir()
        pool.save(row, tmp_path)
        assert pool.ledger(row).steps == 5 + 7
        assert pool.ledger(row).snapshots == 3
