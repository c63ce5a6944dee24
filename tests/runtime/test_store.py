"""A snapshot folder that is damaged, failing, shared, forked, moved or interrupted."""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Budget, Bundle
from stategate.contract.errors import (
    SnapshotDamagedError,
    SnapshotError,
    SnapshotWarning,
    SpecError,
)
from stategate.runtime import Pool, Session, SnapshotPolicy
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.keep.account import RECORD_BYTES
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import DAMAGED_KEPT, SLOTS

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
CLOSED = np.array([[-1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
DAY_NS = 86_400_000_000_000


def save_times(bundle: Path, folder: Path, times: int) -> None:
    with Session.open(bundle, snapshots=folder) as session:
        for _ in range(times):
            session.step(x=OPEN)
            session.save()


def opened_with_a_warning(bundle: Path, policy: SnapshotPolicy | Path, match: str) -> Session:
    with pytest.warns(SnapshotWarning, match=match):
        return Session.open(bundle, snapshots=policy)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zero length": lambda raw: b"",
    "zero filled": lambda raw: bytes(len(raw)),
    "truncated": lambda raw: raw[:-100],
    "too long": lambda raw: raw + bytes(1 << 21),
}


@pytest.mark.case("A9")
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_without_a_good_slot_opens_and_says_so(
    tiny_bundle: Path, tmp_path: Path, slots: int, damage: str
) -> None:
    save_times(tiny_bundle, tmp_path, slots)
    for name in SLOTS[:slots]:
        (tmp_path / name).write_bytes(DAMAGE[damage]((tmp_path / name).read_bytes()))
    before = {name: (tmp_path / name).read_bytes() for name in SLOTS[:slots]}
    with opened_with_a_warning(tiny_bundle, tmp_path, SLOTS[slots - 1]) as session:
        assert all(name in str(session.snapshot_problem) for name in before)
        assert all(name in str(session.metrics()["snapshot_problem"]) for name in before)
        with pytest.raises(SnapshotDamagedError, match="on_damage='fresh'") as problem:
            session.restore()
        assert all(name in str(problem.value) for name in before)
        session.step(x=OPEN)
        # Nothing is overwritten unless the policy says so.
        with pytest.raises(SnapshotDamagedError):
            session.save()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.case("A9")
def test_starting_afresh_keeps_the_damaged_files(tiny_bundle: Path, tmp_path: Path) -> None:
    save_times(tiny_bundle, tmp_path, 2)
    before = []
    for name in SLOTS:
        before.append((tmp_path / name).read_bytes()[:-7])
        (tmp_path / name).write_bytes(before[-1])
    policy = SnapshotPolicy(tmp_path, on_damage="fresh")
    with opened_with_a_warning(tiny_bundle, policy, "the session starts afresh") as session:
        assert session.restore() is None
        session.step(x=OPEN)
        session.save()
        assert session.snapshot_problem is not None
        session.step(x=OPEN)
        session.save()
        assert session.snapshot_problem is None
    assert sorted(path.read_bytes() for path in tmp_path.glob("damaged-*")) == sorted(before)
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        restored = session.restore()
        assert restored is not None and restored.steps == 2


@pytest.mark.case("A9", "E2")
@pytest.mark.parametrize("aside", [0, DAMAGED_KEPT])
def test_slots_that_can_be_read_again_do_not_come_back_into_a_new_history(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: int
) -> None:
    save_times(tiny_bundle, tmp_path, 50)
    for number, name in ((n + 1, name) for n in range(aside) for name in SLOTS):
        (tmp_path / f"damaged-{number}-{name}").write_bytes(b"of another day")
    fail_to_read(monkeypatch, set(SLOTS), errno.EIO)
    policy = SnapshotPolicy(tmp_path, on_damage="fresh")
    with opened_with_a_warning(tiny_bundle, policy, "the session starts afresh") as session:
        assert session.restore() is None
        session.step(x=OPEN)
        session.save()
        monkeypatch.undo()  # the card reads again what it refused
        session.step(x=OPEN)
        session.save()
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        restored = session.restore()
        assert restored is not None and restored.steps == 2


@pytest.mark.case("A9", "E2")
def test_nor_into_that_of_a_pool_row(
    tiny_pool_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool.open(tiny_pool_bundle) as pool:
        old = pool.join()
        for _ in range(3):
            pool.step(x=np.repeat(OPEN, 4, axis=0))
            pool.save(old, tmp_path)
        pool.leave(old)
        new = pool.join()
        pool.step(x=np.repeat(OPEN, 4, axis=0))
        fail_to_read(monkeypatch, set(SLOTS), errno.EIO)
        assert pool.save(new, tmp_path, on_damage="fresh") == 1
        monkeypatch.undo()
        restored = pool.restore(new, tmp_path, on_damage="raise")
        assert restored is not None and restored.steps == 1


@pytest.mark.case("A9")
def test_so_many_damaged_files_are_kept_and_no_more(tiny_bundle: Path, tmp_path: Path) -> None:
    save_times(tiny_bundle, tmp_path, 2)
    for turn in range(DAMAGED_KEPT + 3):
        newest = max((tmp_path / name for name in SLOTS), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(b"damage %d" % turn)
        with opened_with_a_warning(tiny_bundle, tmp_path, newest.name) as session:
            session.step(x=OPEN)
            session.save()
    kept = sorted(path.read_bytes() for path in tmp_path.glob("damaged-*"))
    assert kept == [b"damage %d" % turn for turn in range(DAMAGED_KEPT)]


@pytest.mark.case("A9")
def test_a_pool_row_says_what_is_damaged_and_starts_afresh_on_request(
    tiny_pool_bundle: Path, tmp_path: Path
) -> None:
    with Pool.open(tiny_pool_bundle) as pool:
        row = pool.join()
        pool.step(x=np.repeat(OPEN, 4, axis=0))
        pool.save(row, tmp_path)
        (tmp_path / SLOTS[0]).write_bytes(b"noise")
        for call in (pool.save, pool.restore):
            with pytest.raises(SnapshotDamagedError, match=SLOTS[0]):
                call(row, tmp_path)
        assert pool.restore(row, tmp_path, on_damage="fresh") is None
        assert pool.save(row, tmp_path, on_damage="fresh") == 1
        assert [path.read_bytes() for path in tmp_path.glob("damaged-*")] == [b"noise"]


def test_a_policy_for_damage_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="raise or fresh"):
        SnapshotPolicy(tmp_path, on_damage="ignore")


POOL_ORDERS = {
    "saved without a restore": lambda pool, row, folder: pool.save(row, folder),
    "restored after a step": lambda pool, row, folder: (
        pool.restore(row, folder),
        pool.save(row, folder),
    ),
    "restored twice": lambda pool, row, folder: (
        pool.restore(row, folder),
        pool.restore(row, folder),
        pool.save(row, folder),
    ),
}


@pytest.mark.case("E1")
@pytest.mark.parametrize("order", POOL_ORDERS)
def test_a_pool_row_counts_on_in_a_folder_with_a_longer_history(
    tiny_pool_bundle: Path, tmp_path: Path, order: str
) -> None:
    xs = np.repeat(OPEN, 4, axis=0)
    with Pool.open(tiny_pool_bundle) as pool:
        row = pool.join()
        for _ in range(9):
            pool.step(x=xs)
        pool.save(row, tmp_path)
        pool.leave(row)  # leave and join: another session in the same row
        row = pool.join()
        pool.step(x=xs)
        POOL_ORDERS[order](pool, row, tmp_path)
        assert pool.ledger(row).steps == 10
    with Pool.open(tiny_pool_bundle) as pool:  # a restart
        row = pool.join()
        pool.step(x=xs)
        POOL_ORDERS[order](pool, row, tmp_path)
        assert pool.ledger(row).steps == 11
        assert pool.ledger(row).snapshots == 3


@pytest.mark.case("E1")
def test_a_row_and_a_session_take_turns_in_one_folder_and_count_one_history(
    tiny_bundle: Path, tmp_path: Path, seal_model: Callable, tiny
) -> None:
    pooled = seal_model(tmp_path / "pool", tiny, sessions=4).path
    folder, steps = tmp_path / "s", 0
    with Pool.open(pooled) as pool:
        row = pool.join()
        for turn in range(3):
            pool.step(x=np.repeat(OPEN, 4, axis=0))
            pool.save(row, folder)
            steps += 1
            assert pool.ledger(row).steps == steps
            with Session.open(tiny_bundle, snapshots=folder) as session:
                session.restore()
                for _ in range(turn + 2):
                    session.step(x=OPEN)
                session.save()
                steps += turn + 2
                assert session.ledger.steps == steps


@pytest.mark.case("E1")
def test_a_row_whose_save_was_interrupted_after_the_rename_counts_it_once(
    tiny_pool_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xs = np.repeat(OPEN, 4, axis=0)
    with Pool.open(tiny_pool_bundle) as pool:
        row = pool.join()
        pool.step(x=xs)
        pool.save(row, tmp_path)
        real = os.replace

        def replace(old: Path, new: Path) -> None:
            real(old, new)
            raise KeyboardInterrupt

        pool.step(x=xs)
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            pool.save(row, tmp_path)
        monkeypatch.undo()
        pool.step(x=xs)
        assert pool.save(row, tmp_path) == 3
        ledger = pool.ledger(row)
        stored = Codec(pool.manifest).stored_bytes
        assert (ledger.steps, ledger.snapshots) == (3, 3)
        assert ledger.persisted_bytes == 3 * stored


def fail_to_read(monkeypatch: pytest.MonkeyPatch, names: set[str], number: int) -> None:
    real = os.open

    def refuse(path: object, *rest: object, **more: object) -> int:
        if Path(str(path)).name in names:
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.case("E2")
@pytest.mark.parametrize("bad", SLOTS)
def test_a_slot_that_cannot_be_read_costs_one_snapshot_and_is_written_around(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    save_times(tiny_bundle, tmp_path, 2)
    good = SLOTS[1 - SLOTS.index(bad)]
    before = (tmp_path / good).read_bytes()
    fail_to_read(monkeypatch, {bad}, errno.EIO)
    with opened_with_a_warning(tiny_bundle, tmp_path, f"{bad} cannot be read") as session:
        restored = session.restore()
        assert restored is not None and restored.slot == good
        assert "Input/output error" in restored.reason
        session.step(x=OPEN)
        session.save()
    assert (tmp_path / good).read_bytes() == before
    monkeypatch.undo()
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        restored = session.restore()
        assert restored is not None and restored.slot == bad


@pytest.mark.case("E2")
def test_a_process_that_may_open_no_more_files_takes_no_slot_for_damaged(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_times(tiny_bundle, tmp_path, 2)
    policy = SnapshotPolicy(tmp_path, on_damage="fresh")
    with Session.open(tiny_bundle, snapshots=policy) as session:
        fail_to_read(monkeypatch, set(SLOTS), errno.EMFILE)
        for call in (session.save, session.restore):
            with pytest.raises(SnapshotError, match="Too many open files"):
                call()
        monkeypatch.undo()
        assert session.restore() is not None
    assert not list(tmp_path.glob("damaged-*"))


@pytest.mark.case("E2")
def test_a_fifo_or_a_link_in_the_place_of_a_slot_is_damage_and_no_hang(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save_times(tiny_bundle, tmp_path, 1)
    os.mkfifo(tmp_path / SLOTS[1])
    with opened_with_a_warning(tiny_bundle, tmp_path, "not a file") as session:
        assert session.restore() is not None
    (tmp_path / SLOTS[1]).unlink()
    (tmp_path / SLOTS[1]).symlink_to(tmp_path / SLOTS[0])
    with opened_with_a_warning(tiny_bundle, tmp_path, "is a link") as session:
        assert session.restore() is not None


FORKING = """
import multiprocessing, os, signal, sys, time
import numpy as np
from stategate.contract.errors import SnapshotError
from stategate.runtime import Session

def child(session, pipe):
    try:
        session.save()
        pipe.send("saved")
    except SnapshotError as problem:
        pipe.send(str(problem))
    session.close()
    pipe.send("closed")
    time.sleep(60)

session = Session.open(sys.argv[1], snapshots=sys.argv[2])
session.step(x=np.ones((1, 4), np.float32))
session.save()
here, there = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=child, args=(session, there))
process.start()
print(process.pid, repr(here.recv()), here.recv(), flush=True)
session.save()  # the child's close() did not unlock it
if sys.argv[3] == "close":
    session.close()
    print("done", flush=True)
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.case("E3", "E13")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_forked_child_can_neither_save_nor_hold_the_folder(
    tiny_bundle: Path, tmp_path: Path, end: str
) -> None:
    """Really forked, and the child outlives its parent's hold."""
    command = [sys.executable, "-c", FORKING, tiny_bundle, tmp_path, end]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, said = parent.stdout.readline().split(" ", 1)
    try:
        assert "forked from" in said and "what to do" in said and "closed" in said
        if end == "close":
            assert parent.stdout.readline() == "done\n"
        else:
            parent.wait()
        os.kill(int(pid), 0)  # the child lives
        with Session.open(tiny_bundle, snapshots=tmp_path) as session:
            restored = session.restore()
            assert restored is not None and restored.sequence == 2
    finally:
        os.kill(int(pid), signal.SIGKILL)
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_child_forked_without_our_notice_does_not_keep_the_folder_locked(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        copy = os.dup(session._keeper._store._lock)  # what a fork inside a C library holds
    Session.open(tiny_bundle, snapshots=tmp_path).close()
    os.close(copy)


CRASHING = """
import os, sys
from pathlib import Path
import numpy as np
from stategate.contract import Budget
from stategate.contract.errors import SnapshotError
from stategate.runtime import Session

bundle, folder, cost, how = sys.argv[1:]
budget = Budget(persisted_bytes_per_day=5 * float(cost))
def replace(old, new):
    print("written", flush=True)
    if how == "killed":
        os._exit(9)
    raise OSError(5, "Input/output error")
os.replace = replace
for start in range(10):
    if how == "killed" and os.fork() > 0:
        os.wait()
        continue
    session = Session.open(bundle, snapshots=folder, budget=budget)
    session.step(x=np.ones((1, 4), np.float32))
    try:
        session.save()
    except SnapshotError:
        pass
    session.close()
    if how == "killed":
        os._exit(0)
"""


@pytest.mark.case("E4")
@pytest.mark.parametrize("how", ["killed", "failing"])
def test_what_never_becomes_a_snapshot_is_charged_over_all_restarts(
    tiny_bundle: Path, tmp_path: Path, how: str
) -> None:
    """Between sync and rename, at every start: five a day are written, and not one more."""
    cost = Codec(Bundle.open(tiny_bundle).manifest).cost_bytes
    command = [sys.executable, "-c", CRASHING, tiny_bundle, tmp_path, str(cost), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["written"] * 5


@pytest.mark.case("E4")
def test_the_record_of_the_charge_is_itself_charged_and_counted(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    codec = Codec(Bundle.open(tiny_bundle).manifest)
    assert codec.cost_bytes == codec.stored_bytes + RECORD_BYTES + 20 * 1024
    budget = Budget(persisted_bytes_per_day=3.0 * codec.cost_bytes)
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
        session.save()
        assert session.ledger.persisted_bytes == codec.stored_bytes + RECORD_BYTES
    # Blocks that are written are those of the account; its size does not grow.
    for _ in range(2):
        with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
            session.save()
    assert (tmp_path / "account").stat().st_size == 2 * RECORD_BYTES


@pytest.mark.case("E4")
@pytest.mark.parametrize("damage", ["newest record", "both records", "unreadable"])
def test_an_account_that_cannot_be_read_leaves_nothing_and_can_be_written_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cost = Codec(Bundle.open(tiny_bundle).manifest).cost_bytes
    budget = Budget(persisted_bytes_per_day=9.0 * cost, writes_per_1000_steps=500)
    clock = ManualClock()
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
        for _ in range(3):
            session.step(x=OPEN)
            session.save()
    account = tmp_path / "account"
    raw = bytearray(account.read_bytes())
    if damage == "unreadable":
        fail_to_read(monkeypatch, {"account"}, errno.EIO)
    else:
        # Five records: taken, three charges, given back. The fifth lies in the first block.
        raw[10] ^= 1
        if damage == "both records":
            raw[RECORD_BYTES + 10] ^= 1
        account.write_bytes(raw)
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget, clock=clock) as session:
        session.step(x=OPEN)
        assert session.ledger.writes == 0
        assert session.save() is None
        monkeypatch.undo()
        clock.advance_ns(DAY_NS // 4)
        assert session.save() is not None


@pytest.mark.case("E5")
def test_restoring_an_older_snapshot_gives_no_writes_back(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    budget, steps, writes = Budget(writes_per_1000_steps=50), 0, 0
    for _ in range(4):
        with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
            session.restore()  # a snapshot with every token
            if steps == 0:
                session.save()
                older = (tmp_path / SLOTS[0]).read_bytes()
            before = session.ledger.writes
            for _ in range(100):
                session.step(x=OPEN)
            steps, writes = steps + 100, writes + session.ledger.writes - before
            session.save()
        for name in SLOTS:
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / SLOTS[0]).write_bytes(older)
    assert writes <= 50 + steps * 0.05
    assert writes >= steps * 0.05  # and it is no lock either


@pytest.mark.case("E5")
@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_restarts_that_never_restore_give_no_writes_back(
    tiny_bundle: Path, tmp_path: Path, end: str
) -> None:
    """`dropped` is a process that dies: nothing is given back, and nothing comes back."""
    budget, steps, writes = Budget(writes_per_1000_steps=50), 0, 0
    for _ in range(8):
        session = Session.open(tiny_bundle, snapshots=tmp_path, budget=budget)
        for _ in range(60):
            session.step(x=OPEN)
        steps, writes = steps + 60, writes + session.ledger.writes
        if end == "closed":
            session.close()
        else:
            session._keeper._store.close()
    assert writes <= 50 + steps * 0.05


@pytest.mark.case("E5")
def test_a_clean_restart_goes_on_with_exactly_the_writes_that_were_left(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    budget = Budget(writes_per_1000_steps=20)
    pattern = list(itertools.islice(itertools.cycle([OPEN, CLOSED, OPEN]), 90))
    with Session.open(tiny_bundle, budget=budget) as whole:
        for x in pattern:
            whole.step(x=x)
        expected = whole.ledger
    for part in range(3):
        with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
            for x in pattern[30 * part : 30 * part + 30]:
                session.step(x=x)
            session.save()
            assert session.ledger.steps == 30 * part + 30
            found = session.ledger
    assert (found.writes, found.suppressed_writes) == (expected.writes, expected.suppressed_writes)


@pytest.mark.case("E5")
def test_a_full_disk_at_the_start_takes_the_writes_and_not_the_session(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(writes_per_1000_steps=100)
    Session.open(tiny_bundle, snapshots=tmp_path, budget=budget).close()

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
        for _ in range(9):
            session.step(x=OPEN)
        assert session.ledger.writes == 0
        for _ in range(11):
            session.step(x=OPEN)
        assert session.ledger.writes >= 1  # what is earned may be used


@pytest.mark.case("E5")
def test_a_disk_too_full_for_an_account_does_not_keep_the_robot_from_starting(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_times(tiny_bundle, tmp_path, 1)
    budget = Budget(persisted_bytes_per_day=1e9, writes_per_1000_steps=100)
    fail_to_read(monkeypatch, {"account"}, errno.ENOSPC)
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
        assert session.restore() is not None
        session.step(x=OPEN)
        assert session.ledger.writes == 1  # that of the snapshot: nothing is taken undurably
    monkeypatch.undo()
    with Session.open(tiny_bundle, snapshots=tmp_path, budget=budget) as session:
        session.step(x=OPEN)
        assert session.ledger.writes == 1


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.case("E6")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that was being opened
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_at_any_moment_of_a_save_costs_that_save_alone(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Every line that a save runs is one at which a signal's handler may raise."""
    budget = Budget(persisted_bytes_per_day=1e12)
    policy = SnapshotPolicy(tmp_path)
    session = Session.open(tiny_bundle, snapshots=policy, budget=budget)
    lines = 0

    def trace_at(line: int) -> Callable:
        seen = 0

        def trace(frame: object, event: str, _: object) -> object:
            nonlocal seen, lines
            if event == "line":
                seen += 1
                lines = max(lines, seen)
                if seen == line:
                    raise Stop
            return trace

        return trace

    line, stopped, stored = 0, 0, Codec(session.manifest).stored_bytes
    while True:
        line += 23  # every line would take a minute
        session.step(x=OPEN)
        before = session.ledger
        found = session._keeper._store.look().newest
        newest = found.snapshot.header.sequence if found is not None else 0
        old = sys.gettrace()
        sys.settrace(trace_at(line))
        try:
            session.save()
        except Stop:
            stopped += 1
        else:
            sys.settrace(old)
            break
        finally:
            sys.settrace(old)
        # What was good is still good, and the folder holds what was saved last or is being saved.
        store = session._keeper._store
        found = store.look().newest
        if found is not None:
            assert found.snapshot.header.sequence in (newest, newest + 1)
            assert found.snapshot.header.ledger.steps in (before.steps, before.steps - 1)
        session.step(x=OPEN)
        assert session.save() is not None
        after = session.ledger
        assert after.goes_back_from(before) == []
        assert after.snapshots == store.look().newest.snapshot.header.ledger.snapshots
        grown = after.persisted_bytes - before.persisted_bytes
        assert grown <= 2 * (stored + RECORD_BYTES)
        assert session.restore() is not None
    assert stopped > 15
    session.close()


@pytest.mark.case("E6")
def test_bytes_of_an_interrupted_save_are_counted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.save()

        def fsync(_: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            session.save()
        monkeypatch.undo()
        session.save()
        stored = Codec(session.manifest).stored_bytes
        assert (session.ledger.snapshots, session.ledger.persisted_bytes) == (2, 3 * stored)


@pytest.mark.case("E10")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_called_so_and_used(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with opened_with_a_warning(tiny_bundle, tmp_path, "without locks") as session:
        assert session.snapshot_problem == "the file system has no locks"
        session.step(x=OPEN)
        session.save()
        assert session.restore() is not None


@pytest.mark.case("E10")
@pytest.mark.parametrize("limited", [False, True])
def test_locks_that_do_nothing_never_let_two_sessions_overwrite_each_other(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    budget = Budget(writes_per_1000_steps=500) if limited else None
    first = Session.open(tiny_bundle, snapshots=tmp_path, budget=budget)
    second = Session.open(tiny_bundle, snapshots=tmp_path, budget=budget)
    with first, second:
        first.step(x=OPEN)
        first.save()
        for session in (second, second):
            session.step(x=OPEN)
            for call in (session.save, session.restore):
                with pytest.raises(SnapshotError, match="another session"):
                    call()
        for _ in range(3):
            first.step(x=OPEN)
            first.save()
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        restored = session.restore()
        assert restored is not None and restored.steps == 4


@pytest.mark.case("E13")
@pytest.mark.parametrize("how", ["removed", "moved away", "replaced"])
def test_a_folder_that_is_gone_gives_a_sentence_with_a_remedy(
    tiny_bundle: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "s"
    with Session.open(tiny_bundle, snapshots=folder) as session:
        session.step(x=OPEN)
        session.save()
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")
        if how == "replaced":
            save_times(tiny_bundle, folder, 3)
        before = session.state("h").tobytes()
        for call in (session.save, session.restore):
            with pytest.raises(SnapshotError, match="no longer held") as problem:
                call()
            assert "what to do" in str(problem.value) and str(folder) in str(problem.value)
        assert session.state("h").tobytes() == before
        if how == "moved away":  # the remedy
            (tmp_path / "elsewhere").rename(folder)
            assert session.restore() is not None
            assert session.save() == 2


def test_nothing_is_warned_of_in_a_folder_that_is_sound(tiny_bundle: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_times(tiny_bundle, tmp_path, 3)
        with Session.open(tiny_bundle, snapshots=tmp_path) as session:
            assert session.snapshot_problem is None
            assert "snapshot_problem" not in session.metrics()
    assert multiprocessing.active_children() == []
