"""What a handler raises reaches the caller as it is, and leaves a step whole or undone.

Python runs handlers between calls. `raising_at` raises there, before or after the n-th call, for
every n in turn; alarms raise wherever they happen to fall.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from stategate.contract import Budget
from stategate.contract.errors import BudgetWarning, EngineError
from stategate.contract.failures import failures
from stategate.runtime import Pool, Session, SnapshotPolicy
from stategate.runtime.check.faults import inject
from stategate.runtime.episodes.recorder import Recorder

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
CLOSED = -OPEN
NAMES = ("h", "count")
# A file that was opened in the very moment is closed by Python's collector, which warns of it.
closed_late = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


class Stop(Exception):
    """Nobody else's."""


def happens_at(point: int, act: Callable[[], object]) -> bool:
    """Whether something ends before the n-th call or return inside it, where Stop is raised."""
    left = point

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop

    try:
        sys.setprofile(count)
        act()
        sys.setprofile(None)  # itself a call
    except Stop:
        return False
    finally:
        sys.setprofile(None)
    return left > 0  # Python drops what is raised in a __del__, and the operation goes on


@contextmanager
def alarms(kind: type[BaseException] = Stop) -> Iterator[Callable[[float], None]]:
    """Arms an alarm whose handler raises."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise kind("an alarm")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def tiny_native(tmp_path_factory: pytest.TempPathFactory, seal_model, tiny_model) -> Path:
    native = shutil.which("cc") is not None
    return seal_model(tmp_path_factory.mktemp("tiny") / "b", tiny_model(), native=native).path


def seen(session: Session) -> tuple[object, ...]:
    ledger = session.ledger
    assert ledger.steps == ledger.writes + ledger.quiet_steps + ledger.suppressed_writes
    return (*(session.state(name).tobytes() for name in NAMES), ledger)


def same_history(path: Path, folder: Path | None, **options: object) -> Session:
    """A session in the middle of its life; two of them are equal."""
    policy = SnapshotPolicy(folder, every_writes=1000) if folder is not None else None
    session = Session.open(path, snapshots=policy, **options)  # type: ignore[arg-type]
    for x in (OPEN, CLOSED, OPEN * 2):
        session.step(x=x)
    if policy is not None:
        session.save()
        session.step(x=OPEN * 3)
    return session


OPERATIONS: dict[str, Callable[[Session], object]] = {
    "a write": lambda s: s.step(x=OPEN),
    "a quiet step": lambda s: s.step(x=CLOSED),
    "a reset": lambda s: s.reset(),
    "load_state": lambda s: s.load_state(
        {"h": np.full((1, 4), 0.25, np.float32), "count": np.full((1, 1), 7, np.float32)}
    ),
    "restore": lambda s: s.restore(),
}


@pytest.mark.slow
@pytest.mark.corners("a *", "reset*", "load_state*", "restore-native-*")
@closed_late
@pytest.mark.case("A5")
@pytest.mark.parametrize(
    ("engine", "on_fault"),
    [("onnxruntime", "hold"), pytest.param("native", "raise", marks=needs_compiler)],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_is_interrupted_anywhere_is_whole_or_undone(
    tiny_native: Path, tmp_path: Path, engine: str, on_fault: str, name: str
) -> None:
    budget = Budget(writes_per_1000_steps=500)
    folder = tmp_path / "s" if name == "restore" else None
    options = {"engine": engine, "on_fault": on_fault, "budget": budget}
    act = OPERATIONS[name]
    with same_history(tiny_native, folder, **options) as session:
        before, tokens = seen(session), session._governor.tokens
        act(session)
        after, tokens_after = seen(session), session._governor.tokens
        assert before != after
    point, ends = 0, set()
    while len(ends) < 3:
        # Reading and checking a snapshot is many calls, of which few matter.
        point += 1 if name != "restore" else 3
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        with same_history(tiny_native, folder, **options) as session:
            done = happens_at(point, lambda s=session: act(s))  # type: ignore[misc]
            end = seen(session)
            assert (
                end in (before, after)
                or name == "restore"
                and end[:2]
                in (
                    before[:2],
                    after[:2],
                )
            ), f"{name} was left half done at {point}"
            if name != "restore":
                assert session._governor.tokens == (tokens if end == before else tokens_after)
            ends.add("done" if done else "whole" if end == after else "undone")
            if done:
                assert end == after
                break
            session.step(x=OPEN)  # and it goes on
    assert ends >= {"done", "undone"}


@pytest.mark.case("A5")
@pytest.mark.parametrize("on_fault", ["hold", "reset"])
def test_what_is_held_is_whole_however_the_copy_was_interrupted(
    tiny_bundle: Path, on_fault: str
) -> None:
    point = 0
    while True:
        point += 1
        with Session.open(tiny_bundle, on_fault=on_fault) as session:
            answers = [session.step(x=x)["y"].tobytes() for x in (OPEN, OPEN * 2)]
            steps = session.committed_steps
            done = happens_at(point, lambda s=session: s.step(x=OPEN * 3))  # type: ignore[misc]
            if session.committed_steps > steps:
                answers.append(session.outputs["y"].tobytes())
            inject(session, {1: "engine"})
            assert session.step(x=OPEN)["y"].tobytes() == answers[-1]
            if done:
                break


@pytest.mark.slow
@pytest.mark.corners("step-*", "reset-*", "load_state-*")
@closed_late
@pytest.mark.case("A5")
@pytest.mark.parametrize("rows", [None, [1, 2]])
@pytest.mark.parametrize("name", ["step", "reset", "load_state", "restore"])
def test_a_pool_that_is_interrupted_anywhere_has_whole_rows(
    tiny_pool_bundle: Path, tmp_path: Path, name: str, rows: list[int] | None
) -> None:
    x = np.concatenate([OPEN, CLOSED, OPEN * 2, OPEN * 3])

    def opened() -> Pool:
        pool = Pool.open(tiny_pool_bundle)
        for _ in range(pool.capacity):
            pool.join()
        pool.step(x=x)
        return pool

    def act(pool: Pool) -> None:
        if name == "step":
            pool.step(rows=rows, x=x * 0.5)
        elif name == "reset":
            pool.reset(1)
        elif name == "load_state":
            pool.load_state(1, {n: pool.state(3, n) for n in NAMES})
        else:
            pool.restore(1, tmp_path / "s")

    def rows_of(pool: Pool) -> list[tuple[object, ...]]:
        return [
            (
                *(pool.state(row, n).tobytes() for n in NAMES),
                pool.ledger(row),
                pool.outputs["y"][row].tobytes(),
            )
            for row in pool.rows
        ]

    with opened() as pool:
        pool.step(x=x)
        pool.save(2, tmp_path / "s")
    with opened() as pool:
        before = rows_of(pool)
        act(pool)
        after = rows_of(pool)
    assert before != after
    point, ends = 0, set()
    while "done" not in ends:
        point += 1 if name != "restore" else 3
        with opened() as pool:
            done = happens_at(point, lambda p=pool: act(p))  # type: ignore[misc]
            end = rows_of(pool)
            assert end in (before, after), f"{name} was left half done at {point}"
            ends.add("done" if done else "whole" if end == after else "undone")
    assert ends == {"done", "whole", "undone"}


@pytest.mark.case("A5")
@pytest.mark.parametrize(
    ("on_fault", "engine", "kind"),
    [
        *((policy, "onnxruntime", Stop) for policy in ("raise", "hold", "reset")),
        *(("hold", "onnxruntime", kind) for kind in (TimeoutError, RuntimeError, Warning)),
        pytest.param("hold", "native", Stop, marks=needs_compiler),
    ],
)
def test_an_alarm_while_an_engine_computes_reaches_the_caller_under_every_policy(
    aura_bundle: Path, native_bundle: Path, on_fault: str, engine: str, kind: type[BaseException]
) -> None:
    path = native_bundle if engine == "native" else aura_bundle
    chance = random.Random(3)
    z = np.random.default_rng(0).standard_normal((40, 1, 64)).astype(np.float32)
    passed = 0
    with Session.open(path, engine=engine, on_fault=on_fault) as session, alarms(kind) as arm:
        for _ in range(60):
            try:
                arm(chance.uniform(1e-5, 1e-3))
                for one in z:
                    session.step(z=one)
                time.sleep(1)  # and not pause: the alarm may fall just before it
                pytest.fail("no alarm")
            except kind as problem:
                assert str(problem) == "an alarm"
                passed += 1
        ledger = session.ledger
    assert passed == 60
    assert (ledger.faults, ledger.resets) == (0, 0)


@pytest.mark.case("A5")
def test_a_time_limit_passes_a_save_that_it_interrupts(tiny_bundle: Path, tmp_path: Path) -> None:
    """TimeoutError is an OSError, as a full disk is; under hold that would be swallowed."""
    policy = SnapshotPolicy(tmp_path, every_writes=1)
    real = os.fsync

    def slow(descriptor: int) -> None:
        signal.raise_signal(signal.SIGALRM)
        real(descriptor)

    with (
        Session.open(tiny_bundle, snapshots=policy, on_fault="hold") as session,
        alarms(TimeoutError),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(os, "fsync", slow)
        with pytest.raises(TimeoutError, match="an alarm"):
            session.step(x=OPEN)
        patch.undo()
        assert (session.ledger.faults, session.ledger.writes) == (0, 1)
        session.step(x=CLOSED)  # the save that did not happen is still due
        assert session.ledger.snapshots == 1


@pytest.mark.case("A5", "A6")
def test_a_step_that_is_interrupted_anywhere_leaves_the_thread_computing_as_before(
    tiny_bundle: Path,
) -> None:
    small = np.full(64, 1e-40, np.float32)
    point, done = 0, False
    with Session.open(tiny_bundle, engine="onnxruntime") as session:
        while not done:
            point += 1
            done = happens_at(point, lambda: session.step(x=OPEN))
            assert (small * np.float32(1.0)).all(), f"subnormal is zero after point {point}"
    assert point > 10


@pytest.mark.case("A5", "E4", "E5")
@pytest.mark.parametrize("name", ["open", "fsync", "fdatasync", "pwrite", "close", "unlink"])
@pytest.mark.parametrize("what", ["open", "save", "close"])
def test_a_time_limit_passes_the_account_of_budgets_that_it_interrupts(
    tiny_bundle: Path, tmp_path: Path, what: str, name: str
) -> None:
    """Wherever the handler raises, the very exception arrives, and the folder opens again."""
    budget = Budget(writes_per_1000_steps=500, persisted_bytes_per_day=10_000_000)
    real = getattr(os, name)
    left = None

    def interrupted(*args: object, **options: object) -> object:
        nonlocal left
        result = real(*args, **options)
        left = None if left is None else left - 1
        if left == 0:
            signal.raise_signal(signal.SIGALRM)
        return result

    def opened() -> Session:
        return Session.open(tiny_bundle, budget=budget, snapshots=tmp_path)

    with opened() as session:
        session.save()
    for count in range(1, 30):
        session = opened() if what != "open" else None
        with alarms(TimeoutError), pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, interrupted)
            left = count
            try:
                if session is None:
                    session = opened()
                else:
                    session.save() if what == "save" else session.close()
            except TimeoutError as problem:
                assert str(problem) == "an alarm"
            else:
                assert left is None or left > 0, f"swallowed at call {count} of {name}"
                assert left is not None, f"swallowed at call {count} of {name}"
                break
            finally:
                left = None
        if session is not None:
            session.close()
    else:
        pytest.fail("it never ended")
    if session is not None:
        session.close()
    with opened() as session:
        assert session.save() is not None
        assert session.restore() is not None


@pytest.mark.case("A5")
def test_a_warning_that_was_made_an_error_comes_after_a_whole_step(tiny_bundle: Path) -> None:
    budget = Budget(writes_per_1000_steps=1, on_writes="warn")
    with Session.open(tiny_bundle, budget=budget, on_fault="hold") as session:
        session.step(x=OPEN)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BudgetWarning):
                session.step(x=OPEN)
        ledger = session.ledger
        assert (ledger.writes, ledger.budget_overruns, ledger.faults) == (2, 1, 0)
        assert session.state("count") == 2


@pytest.mark.case("A5")
def test_a_recorder_keeps_the_steps_that_were_taken_and_no_others(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    budget = Budget(writes_per_1000_steps=1, on_writes="warn")
    with (
        Session.open(tiny_bundle, budget=budget, on_fault="hold") as session,
        Recorder(session, tmp_path) as robot,
    ):
        robot.step(x=OPEN)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BudgetWarning):
                robot.step(x=OPEN)
        inject(session, {1: "output"})
        robot.step(x=CLOSED)  # a fault that is held: nothing was taken over
        assert robot.recorded.waiting_steps == session.committed_steps == 2


@pytest.mark.case("A5")
def test_banks_that_were_half_exchanged_are_bound_again(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many gates one binding serves all parities of the banks."""
    monkeypatch.setattr("stategate.runtime.engines.ort._MAX_PREMADE", 0)
    xs = [OPEN, CLOSED, OPEN * 2, OPEN * -3, OPEN * 4]
    with Session.open(tiny_bundle) as session:
        right = [session.step(x=x)["y"].copy() for x in xs]
    point = 0
    while True:
        point += 1
        with Session.open(tiny_bundle) as session:
            session.step(x=xs[0])
            done = happens_at(point, lambda s=session: s.step(x=xs[1]))  # type: ignore[misc]
            for t in range(session.committed_steps, len(xs)):
                np.testing.assert_array_equal(session.step(x=xs[t])["y"], right[t])
            if done:
                break


def test_a_failure_without_a_text_is_named_by_its_class(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session:

        class Silent:
            def run_with_iobinding(self, binding: object) -> None:
                raise RuntimeError

        graph = session._engine._graphs[0]
        graph._session = Silent()
        with pytest.raises(EngineError, match="found: RuntimeError"):
            session.step(x=OPEN)
        assert session.ledger.faults == 1


@pytest.mark.case("A5")
def test_a_users_module_and_a_handler_are_distinguished() -> None:
    """The kind, away from engines: what a factory raises is explained, an alarm passes."""

    def tried(act: Callable[[], object]) -> str:
        try:
            act()
        except failures() as problem:
            return f"explained {type(problem).__name__}"
        return "nothing"

    def module() -> None:
        raise ValueError("of the module")

    assert tried(module) == "explained ValueError"
    with alarms(ValueError), pytest.raises(ValueError, match="an alarm"):
        tried(lambda: signal.raise_signal(signal.SIGALRM))
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        tried(lambda: warnings.warn("made an error", stacklevel=1))
