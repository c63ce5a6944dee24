"""A session begins an episode from states that another model, or another session, computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stategate.contract import Budget
from stategate.contract.errors import (
    PersistBudgetError,
    RuntimeFault,
    SnapshotDamagedError,
    SnapshotError,
    StepInputError,
)
from stategate.runtime import Pool, Session, SnapshotPolicy

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
H = np.full((1, 4), 0.25, np.float32)
COUNT = np.full((1, 1), 7.0, np.float32)


@pytest.mark.case("C8")
@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_a_session_goes_on_as_the_one_whose_states_it_was_given(
    native_bundle: Path, engine: str
) -> None:
    z = np.random.default_rng(0).standard_normal((60, 1, 64)).astype(np.float32)
    with (
        Session.open(native_bundle, engine=engine) as first,
        Session.open(native_bundle, engine=engine) as second,
    ):
        for one in z[:30]:
            first.step(z=one)
        second.step(z=z[59])  # an episode of its own, which is over
        second.load_state({name: first.state(name) for name in ("S", "b")})
        for one in z[30:]:
            right = first.step(z=one)["action"].tobytes()
            assert second.step(z=one)["action"].tobytes() == right
        assert second.ledger.resets == 1


@pytest.mark.case("C8")
@pytest.mark.parametrize(
    ("states", "problem"),
    [
        ({"h": H}, "is missing"),
        ({"h": H, "count": COUNT, "c": H}, "no state 'c'"),
        ({"h": H[0], "count": COUNT}, "wrong shape"),
        ({"h": H.astype(np.float64), "count": COUNT}, "wrong dtype"),
        ({"h": H.tolist(), "count": COUNT}, "wrong dtype"),
        ({"h": H, "count": COUNT * np.nan}, "is not finite"),
    ],
)
def test_states_that_do_not_fit_change_nothing(
    tiny_bundle: Path, states: dict, problem: str
) -> None:
    with Session.open(tiny_bundle) as session:
        session.step(x=OPEN)
        before = {name: session.state(name).tobytes() for name in ("h", "count")}, session.ledger
        with pytest.raises(StepInputError, match=problem):
            session.load_state(states)
        after = {name: session.state(name).tobytes() for name in ("h", "count")}, session.ledger
        assert before == after
    with pytest.raises(RuntimeFault, match="is closed"):
        session.load_state({"h": H, "count": COUNT})


@pytest.mark.case("C8")
def test_what_was_given_is_copied_counted_as_a_reset_and_saved(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    given = {"h": H.copy(), "count": COUNT.copy()}
    policy = SnapshotPolicy(tmp_path, every_seconds=1e-6)
    with Session.open(tiny_bundle, snapshots=policy) as session:
        session.load_state(given)
        given["h"].fill(np.nan)
        assert (session.state("h") == 0.25).all() and session.state("count") == 7
        ledger = session.ledger
        assert (ledger.resets, ledger.steps, ledger.memory_bytes_written) == (1, 0, 0)
        assert session._keeper is not None and session._keeper.is_due()
        session.save()
    with Session.open(tiny_bundle, snapshots=tmp_path) as session:
        session.restore()
        assert (session.state("h") == 0.25).all() and session.ledger.resets == 1


def test_a_row_of_a_pool_counts_it_alike(tiny_pool_bundle: Path) -> None:
    with Pool.open(tiny_pool_bundle) as pool:
        row = pool.join()
        pool.load_state(row, {"h": H, "count": COUNT})
        assert (pool.ledger(row).resets, pool.ledger(row).steps) == (1, 0)
        assert (pool.state(row, "h") == 0.25).all()


def test_a_file_of_states_carries_a_memory_from_one_session_to_another(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "folder" / "memory.safetensors"
    with Session.open(tiny_bundle) as first, Session.open(tiny_bundle) as second:
        first.step(x=OPEN)
        before = first.ledger
        first.save_state(file)
        assert first.ledger.since(before).persisted_bytes == 4096
        second.load_state(file)
        assert second.ledger.resets == 1 and second.ledger.memory_bytes_written == 0
        for name in ("h", "count"):
            assert second.state(name).tobytes() == first.state(name).tobytes()
    with Pool.open(tiny_bundle) as pool:
        row = pool.join()
        pool.load_state(row, file)
        pool.save_state(row, tmp_path / "row.safetensors")
        assert pool.ledger(row).persisted_bytes == 4096
    assert load_file(tmp_path / "row.safetensors")["h"].tobytes() == load_file(file)["h"].tobytes()


def test_a_file_of_another_program_is_taken_and_one_of_another_memory_is_not(
    tiny_bundle: Path, native_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "encoder.safetensors"
    save_file({"h": H, "count": COUNT}, file)
    with Session.open(tiny_bundle) as session:
        session.load_state(file)
        assert session.state("h").tobytes() == H.tobytes()
        with Session.open(native_bundle) as other:
            other.save_state(tmp_path / "other.safetensors")
        before = session.state("h").tobytes(), session.ledger
        with pytest.raises(SnapshotError, match="of another memory"):
            session.load_state(tmp_path / "other.safetensors")
        save_file({"h": H, "count": COUNT * np.inf}, file)
        with pytest.raises(StepInputError, match="is not finite"):
            session.load_state(str(file))
        save_file({"h": H}, file)
        with pytest.raises(StepInputError, match="'count' is missing"):
            session.load_state(file)
        file.write_bytes(b"nothing")
        with pytest.raises(SnapshotDamagedError, match="cannot be read"):
            session.load_state(file)
        assert (session.state("h").tobytes(), session.ledger) == before


def test_a_wear_budget_knows_no_files_beside_its_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    budget = Budget(persisted_bytes_per_day=1e6)
    with Session.open(tiny_bundle, budget=budget) as session:
        with pytest.raises(PersistBudgetError, match="beside the wear budget"):
            session.save_state(tmp_path / "memory.safetensors")
        assert not list(tmp_path.iterdir()) and session.ledger.persisted_bytes == 0
