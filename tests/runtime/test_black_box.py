"""A black box keeps the last steps, and they step again as they were."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

import stategate
from stategate import BlackBox, Bundle
from stategate.contract import Budget
from stategate.contract.errors import (
    BundleError,
    EngineError,
    EpisodeError,
    PersistBudgetError,
    ResultError,
    SnapshotDamagedError,
    SnapshotError,
    SpecError,
    StateFault,
    WriteBudgetError,
)
from stategate.runtime import Pool, Session
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.keep.records import BLOCK_BYTES

SMALL = 96 << 10


def inputs_of(seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.standard_normal((1, 4)).astype(np.float32)


def drive(session: Session, steps: int, seed: int = 0) -> None:
    for x, _ in zip(inputs_of(seed), range(steps), strict=False):
        session.step(x=x)


def test_a_ring_that_came_around_steps_again_bit_for_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    box = tmp_path / "box.rec"
    with Session.open(tiny_bundle, black_box=BlackBox(box, file_bytes=SMALL)) as session:
        size = box.stat().st_size
        drive(session, 2000)
        session.reset()
        drive(session, 300, 1)
        session.load_state({"h": np.full((1, 4), 0.25, np.float32), "count": np.ones((1, 1), "f")})
        drive(session, 700, 2)
        at_the_end = {name: session.state(name) for name in ("h", "count")}
        outputs = session.outputs["y"].copy()
        ledger = session.ledger
    assert box.stat().st_size == size <= SMALL
    assert session.ledger.persisted_bytes > size  # of a ring that came around
    assert session.ledger.persisted_bytes % BLOCK_BYTES == 0
    report = stategate.replay(box, tiny_bundle)
    assert report.passed and report.bit_for_bit and report.last_step == ledger.steps == 3000
    assert report.begins >= 1 and 700 < report.steps < 3000
    moment = stategate.replay(box, tiny_bundle, at=3000).moment
    assert moment is not None
    assert moment.outputs["y"].values == outputs.reshape(-1).tolist()
    assert moment.states["h"].values == at_the_end["h"].reshape(-1).tolist()
    assert moment.states["count"].values == [701.0]
    for number in (1, 3001):
        with pytest.raises(EpisodeError, match=f"no step {number}"):
            stategate.replay(box, tiny_bundle, at=number)


@pytest.mark.slow
def test_minutes_are_kept_whole_whenever_a_ring_is_looked_at(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    box = tmp_path / "box.rec"
    policy = BlackBox(box, minutes=0.5, rate_hz=20)
    with Session.open(tiny_bundle, black_box=policy) as session:
        for steps in (3000, 137, 411):
            drive(session, steps)
            report = stategate.replay(box, tiny_bundle)
            unsent = session.ledger.steps - report.last_step
            assert report.passed and report.steps >= 600 and unsent < BLOCK_BYTES / 48
    with pytest.raises(SpecError, match="rate of the steps"):
        Session.open(tiny_bundle, black_box=BlackBox(tmp_path / "other", minutes=1))


ROBOT = """
import sys, numpy as np
from stategate.runtime import BlackBox, Session
rng = np.random.default_rng(int(sys.argv[3]))
with Session.open(sys.argv[1], black_box=BlackBox(sys.argv[2], file_bytes=98304)) as session:
    while True:
        session.step(x=rng.standard_normal((1, 4)).astype(np.float32))
        print(session.black_box.step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_loses_at_most_the_last_block_and_the_next_one_goes_on(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    box, last = tmp_path / "box.rec", 0
    for life in range(2):
        command = [sys.executable, "-c", ROBOT, str(tiny_bundle), str(box), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as robot:
            assert robot.stdout is not None
            for line in robot.stdout:
                if int(line) > last + 500 + 37 * life:
                    os.kill(robot.pid, signal.SIGKILL)
                    break
            done = int(([line, *robot.stdout])[-1])
        report = stategate.replay(box, tiny_bundle)
        assert report.bit_for_bit and not report.gaps
        assert done - report.last_step <= BLOCK_BYTES // 48 + 1
        assert report.processes == life + 1
        last = report.last_step


def altered(box: Path, place: int, change: Callable[[bytearray], None], right: bool = True) -> None:
    """Change a block, from 1 on; with a checksum that fits, or not."""
    raw = bytearray(box.read_bytes())
    at = place * BLOCK_BYTES
    block = raw[at : at + BLOCK_BYTES]
    change(block)
    if right:
        block[:4] = struct.pack("<I", crc32(block[4:]))
    raw[at : at + BLOCK_BYTES] = block
    box.write_bytes(raw)


def test_what_was_torn_is_a_gap_and_the_steps_around_it_are_stepped(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    box = tmp_path / "box.rec"
    with Session.open(tiny_bundle, black_box=BlackBox(box, file_bytes=SMALL)) as session:
        drive(session, 800)
    whole = stategate.replay(box, tiny_bundle)
    assert (whole.first_step, whole.steps) == (1, 800)
    altered(box, 3, lambda block: block.__setitem__(2000, block[2000] ^ 1), right=False)
    report = stategate.replay(box, tiny_bundle)
    (gap,) = report.gaps
    assert not report.passed and not report.problem and report.bit_for_bit
    assert 800 - (gap.before - gap.after - 1) == report.steps
    assert gap.why == "damaged blocks: 1"
    assert report.processes == 1


@pytest.mark.slow
def test_a_changed_recording_breaks_the_chain_of_the_c_engine_at_the_step(
    native_bundle: Path, tmp_path: Path
) -> None:
    box = tmp_path / "box.rec"
    name = Bundle.open(native_bundle).manifest.inputs[0].name
    rng = np.random.default_rng(0)
    with Session.open(native_bundle, engine="native", black_box=box) as session:
        for _ in range(200):
            session.step(**{name: rng.standard_normal((1, 64)).astype(np.float32) * 3})
    assert stategate.replay(box, native_bundle).passed
    # By another engine: within the tolerance, and it says from which step on.
    other = stategate.replay(box, native_bundle, engine="onnxruntime")
    assert other.passed and not other.bit_for_bit
    assert other.max_state_error is not None and 0 < other.max_state_error < 1e-5
    raw = box.read_bytes()
    # The chain is the first of a step's payload, 16 bytes after the beginning of its head.
    heads = [struct.pack("<IHHQ", 16 + 256, 3, flags, 120) for flags in (0, 2)]
    place = max(raw.find(head) for head in heads)
    altered(box, place // BLOCK_BYTES, lambda b: b.__setitem__(place % BLOCK_BYTES + 16, b[0] ^ 1))
    broken = stategate.replay(box, native_bundle)
    assert not broken.passed and broken.parts_at == 120
    assert "breaks at step 120" in broken.problem


def test_faults_budgets_and_engines_that_fail_are_stepped_again_as_they_were(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    box, clock = tmp_path / "box.rec", ManualClock()
    budget = Budget(writes_per_1000_steps=100, writes_per_second=20, on_writes="raise")
    refusals = 0
    with Session.open(tiny_bundle, black_box=box, budget=budget, clock=clock) as session:
        for number, x in zip(range(400), inputs_of(3), strict=False):
            clock.advance_ns(10_000_000)
            if number == 100:
                x = x * np.float32(1e38)  # not finite in the middle
            try:
                session.step(x=x)
            except WriteBudgetError:
                refusals += 1
            except StateFault:
                pass
        ledger = session.ledger
    assert refusals > 20
    report = stategate.replay(box, tiny_bundle)
    assert report.passed and report.bit_for_bit and report.steps == 400
    assert report.writes == ledger.writes and report.faults == ledger.faults


def test_an_engine_that_failed_left_no_step(tiny_bundle: Path, tmp_path: Path) -> None:
    box = tmp_path / "box.rec"

    class Failing:
        name = "failing"

        def __init__(self, engine: object) -> None:
            self.engine, self.count = engine, 0

        def run(self, parity: int) -> bool:
            self.count += 1
            if self.count == 10:
                raise EngineError("it failed")
            return self.engine.run(parity)  # type: ignore[attr-defined]

        def write(self, parity: int) -> None: ...

        def close(self) -> None: ...

    with Session.open(tiny_bundle, black_box=box, on_fault="hold") as session:
        session.replace_engine(lambda engine, _: Failing(engine))
        drive(session, 30)
    report = stategate.replay(box, tiny_bundle)
    assert report.passed and report.steps == 30 and report.bit_for_bit


def test_an_adapted_threshold_is_that_of_the_recording(tiny_bundle: Path, tmp_path: Path) -> None:
    box = tmp_path / "box.rec"
    budget = Budget(writes_per_1000_steps=50, on_writes="adapt", adapt_limit=2.0)
    with Session.open(tiny_bundle, black_box=box, budget=budget) as session:
        drive(session, 500, 5)
        ledger = session.ledger
    report = stategate.replay(box, tiny_bundle)
    assert report.passed and report.bit_for_bit and report.writes == ledger.writes < 250


@pytest.mark.slow
def test_a_wear_budget_ends_the_recording_for_a_while_and_no_step(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    box, clock = tmp_path / "box.rec", ManualClock()
    budget = Budget(persisted_bytes_per_day=200_000.0)
    with pytest.raises(SpecError, match="snapshot folder"):
        Session.open(tiny_bundle, black_box=box, budget=budget)
    policy = BlackBox(box, file_bytes=1 << 20)
    opened = {"snapshots": tmp_path / "snaps", "black_box": policy, "clock": clock}
    with Session.open(tiny_bundle, budget=budget, **opened) as session:
        drive(session, 6000)
        assert session.black_box is not None and session.black_box.lost_steps > 2000
        assert session.ledger.persisted_bytes <= 200_000
        clock.advance_ns(20 * 3600 * 10**9)
        drive(session, 100)
        assert session.black_box.problem == "the wear budget did not allow more"
    report = stategate.replay(box, tiny_bundle)
    (gap,) = report.gaps
    assert report.bit_for_bit and report.last_step == 6100 and gap.before >= 6000
    raises = Budget(persisted_bytes_per_day=100_000.0, on_persisted="raise")
    opened = {"snapshots": tmp_path / "others", "black_box": tmp_path / "o.rec", "clock": clock}
    with Session.open(tiny_bundle, budget=raises, **opened) as session:
        with pytest.raises(PersistBudgetError, match="black box"):
            drive(session, 6000)
        drive(session, 10)
    # A file that cannot even begin keeps no robot from starting.
    opened["black_box"] = tmp_path / "new.rec"
    with pytest.raises(PersistBudgetError, match="new file"):
        Session.open(tiny_bundle, budget=raises, **opened)
    holds = Budget(persisted_bytes_per_day=100_000.0)
    with Session.open(tiny_bundle, budget=holds, **opened) as session:
        drive(session, 10)
        assert session.black_box is not None and session.black_box.lost_steps == 10
        assert session.black_box.problem == "the wear budget did not allow a new file"


def test_a_file_that_is_something_else_is_neither_gone_on_with_nor_replayed(
    tiny_bundle: Path, aura_bundle: Path, tmp_path: Path
) -> None:
    box = tmp_path / "my box.rec"
    with Session.open(tiny_bundle, black_box=box) as session:
        with pytest.raises(SnapshotError, match="in use"):
            Session.open(tiny_bundle, black_box=box)
        drive(session, 300)
    with pytest.raises(EpisodeError, match="another bundle") as refused:
        Session.open(aura_bundle, black_box=box)
    with pytest.raises(EpisodeError, match="another size"):
        Session.open(tiny_bundle, black_box=BlackBox(box, file_bytes=1 << 20))
    with pytest.raises(BundleError, match="recording of another bundle") as wrong:
        stategate.replay(box, aura_bundle)
    # What is proposed works where it is pasted.
    command = str(wrong.value).partition("find the bundle: ")[2]
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "tiny")
    done = subprocess.run(
        command, shell=True, cwd=tmp_path / "bundles", capture_output=True, text=True
    )
    assert "tiny/manifest.json" in done.stdout
    command = str(refused.value).partition("what to do: ")[2]
    subprocess.run(command, shell=True, check=True)
    Session.open(aura_bundle, black_box=box).close()
    with pytest.raises(EpisodeError, match="no step that could"):
        stategate.replay(box, aura_bundle)
    raw = box.read_bytes()
    box.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(SnapshotDamagedError, match="cannot be replayed"):
        stategate.replay(box, aura_bundle)
    box.write_bytes(b"text")
    with pytest.raises(EpisodeError, match="is no black box"):
        stategate.replay(box, tiny_bundle)
    with pytest.raises(EpisodeError, match="not replaced"):
        Session.open(tiny_bundle, black_box=box)
    assert box.read_bytes() == b"text"
    # No device is moved out of the way, and an error has one remedy.
    with pytest.raises(ResultError, match="the black box is no file") as device:
        Session.open(tiny_bundle, black_box="/dev/null")
    assert "mv " not in str(device.value) and str(refused.value).count("what to do") == 1
    with pytest.raises(SpecError, match="a pool has no black box"):
        Pool.open(tiny_bundle, black_box=box)
    with pytest.raises(SpecError, match="tolerance must be"):
        stategate.replay(box, tiny_bundle, tolerance=float("nan"))
    with pytest.raises(SpecError, match="at must be a whole number"):
        stategate.replay(box, tiny_bundle, at=0)


@pytest.mark.slow
def test_the_first_step_in_which_another_bundle_decides_differently_is_stated(
    tiny_bundle: Path, tiny_model: type, seal_model: Callable[..., Bundle], tmp_path: Path
) -> None:
    box = tmp_path / "box.rec"
    xs = [x for x, _ in zip(inputs_of(9), range(400), strict=False)]
    with Session.open(tiny_bundle, black_box=box) as session:
        for x in xs:
            session.step(x=x)
    alike = stategate.bisect(box, tiny_bundle, tiny_bundle)
    assert alike.passed and alike.steps == 400
    other = seal_model(tmp_path / "other", tiny_model(threshold=0.01))
    expected = next(t for t, x in enumerate(xs, 1) if 0.0 < x[0, 0] <= np.float32(0.01))
    report = stategate.bisect(box, tiny_bundle, other)
    assert report.gate is not None and report.first == report.gate.step == expected
    assert report.gate.recorded.startswith("open: ") and "threshold 0.01" in report.gate.other
    command = ["replay", str(box), "--bundle", str(tiny_bundle), "--bisect", str(other.path)]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("stategate")), *command], capture_output=True, text=True
    )
    assert done.returncode == 1 and f"FAILED: they part at step {expected}" in done.stdout
