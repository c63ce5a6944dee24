"""A folder's whole life, in any order: kills, restarts, restores, forks, clocks and failing disks.

Robots are real processes; see `folder_robot`. The budgets are counted here, from what the robots
were seen to do, and not from what stategate says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stategate.contract import Bundle
from stategate.runtime.keep.account import RECORD_BYTES
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import SLOTS, GoodSnapshot, look_into

HOUR_NS = 3_600_000_000_000
METADATA_BYTES = 20 * 1024
WRITES = 40.0
SAVES_A_DAY = 5
FAULTS = st.sampled_from(
    [
        (call, how)
        for call in ("sync file", "sync folder", "replace", "pwrite", "fdatasync")
        for how in ("fail", "kill before", "kill after", "interrupt")
    ]
)


class Robots:
    """The process that starts robots, one after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("folder_robot.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, name: str, **given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([name, given]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the robots' process has died; its traceback is on stderr"
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class FolderLife(RuleBasedStateMachine):
    robots: Robots
    bundle: Path
    counts: Counter[str] = Counter()  # of what happened, over all lives

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="stategate-store-"))
        self.folder, self.log = self.root / "folder", self.root / "log"
        self.codec = Codec(Bundle.open(self.bundle).manifest)
        # A snapshot with its record and its metadata, and no more.
        self.a_day = SAVES_A_DAY * (self.codec.stored_bytes + METADATA_BYTES + RECORD_BYTES)
        self.alive = False
        self.forked: list[int] = []
        self.boot, self.boot_ns = 0, HOUR_NS
        self.trusted_ns = 0  # what the clocks that nobody can set have measured
        self.steps = self.writes = 0
        self.seen: dict[str, int] = {}
        self.saved = 0  # the sequence number that was reported last
        self.saved_steps = 0

    # --- what happens -----------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.start(restore=False)

    def ask(self, name: str, **given: Any) -> dict[str, Any]:
        answer = self.robots.ask(name, **given)
        assert "error" not in answer, answer["error"]
        self.counts["events"] += 1
        if answer.get("dead"):
            self.alive = False
            self.counts["kills"] += 1
        return answer

    @precondition(lambda self: not self.alive)
    @rule(restore=st.booleans())
    def start(self, restore: bool) -> None:
        self.robots.ask("start", bundle=str(self.bundle), log=str(self.log))
        self.alive, self.seen = True, {}
        given = {"writes": WRITES, "bytes_a_day": self.a_day, "boot_ns": self.boot_ns}
        opened = self.ask("open", folder=str(self.folder), boot=f"boot {self.boot}", **given)
        assert opened == {}, "a folder can always be opened"
        if restore:
            self.restore()

    @precondition(lambda self: self.alive)
    @rule(times=st.integers(1, 30), gate=st.booleans())
    def step(self, times: int, gate: bool) -> None:
        answer = self.ask("step", times=times, gate=gate)
        self.steps, self.writes = self.steps + times, self.writes + answer["writes"]

    @precondition(lambda self: self.alive)
    @rule(fault=st.none() | FAULTS)
    def save(self, fault: tuple[str, str] | None) -> None:
        answer = self.ask("save", fault=fault)
        if answer.get("dead"):
            return
        self.check_forward(answer["ledger"])
        if answer["sequence"] is not None:
            self.saved, self.saved_steps = answer["sequence"], answer["ledger"]["steps"]

    @precondition(lambda self: self.alive)
    @rule()
    def restore(self) -> None:
        answer = self.ask("restore")
        self.check_forward(answer["ledger"])
        assert answer["steps"] is None or answer["steps"] <= answer["ledger"]["steps"]

    @precondition(lambda self: self.alive)
    @rule()
    def kill(self) -> None:
        self.ask("kill")

    @precondition(lambda self: self.alive)
    @rule()
    def close(self) -> None:
        self.ask("close")
        self.ask("kill")

    @precondition(lambda self: self.alive and len(self.forked) < 3)
    @rule()
    def fork(self) -> None:
        answer = self.ask("fork")
        assert answer["said"] == "refused", "a forked child cannot save"
        self.forked.append(answer["child"])

    @rule(hours=st.integers(0, 12))
    def pass_time(self, hours: int) -> None:
        self.boot_ns += hours * HOUR_NS
        self.trusted_ns += hours * HOUR_NS
        if self.alive:
            self.ask("pass_time", ns=hours * HOUR_NS)

    @precondition(lambda self: self.alive)
    @rule(day=st.integers(-20_000, 40_000), back_hours=st.integers(0, 100))
    def jump(self, day: int, back_hours: int) -> None:
        self.ask("jump", wall_s=1.8e9 + 86_400 * day, back_ns=back_hours * HOUR_NS)
        self.steps += 1

    @precondition(lambda self: not self.alive)
    @rule(on_hours=st.integers(0, 3))
    def restart_the_machine(self, on_hours: int) -> None:
        """It was off for nobody knows how long, and has been on for so long."""
        self.boot, self.boot_ns = self.boot + 1, on_hours * HOUR_NS
        self.trusted_ns += on_hours * HOUR_NS

    @precondition(lambda self: not self.alive)
    @rule()
    def put_the_older_snapshot_back(self) -> None:
        found = self.newest()
        if found is not None:
            (self.folder / found.slot).unlink()
            self.expect_what_is_there()

    @precondition(lambda self: not self.alive)
    @rule(slot=st.sampled_from(SLOTS), length=st.integers(0, 9000))
    def damage_a_slot(self, slot: str, length: int) -> None:
        path = self.folder / slot
        if path.exists():
            path.write_bytes(path.read_bytes()[:length])
            self.expect_what_is_there()

    def expect_what_is_there(self) -> None:
        found = self.newest()
        header = found.snapshot.header if found is not None else None
        self.saved = header.sequence if header is not None else 0
        self.saved_steps = header.ledger.steps if header is not None else 0

    # --- what must be so --------------------------------------------------------------------

    def newest(self) -> GoodSnapshot | None:
        # Raises where the newer ledger is behind the older one.
        return look_into(self.folder, self.codec).newest

    def check_forward(self, ledger: dict[str, int]) -> None:
        assert all(ledger[name] >= count for name, count in self.seen.items())
        self.seen = ledger

    @invariant()
    def the_writes_stay_within_the_budget(self) -> None:
        assert self.writes <= WRITES + self.steps * WRITES / 1000

    @invariant()
    def the_flash_gets_no_more_than_the_wear_budget(self) -> None:
        lines = self.log.read_text().split() if self.log.exists() else []
        cost = {"snapshot": self.codec.stored_bytes + METADATA_BYTES, "record": RECORD_BYTES}
        allowed = self.a_day * (1 + self.trusted_ns / (24 * HOUR_NS))
        assert sum(cost[line] for line in lines) <= allowed

    @invariant()
    def the_newest_committed_snapshot_is_there(self) -> None:
        if self.saved == 0:
            return
        found = self.newest()
        assert found is not None
        header = found.snapshot.header
        assert header.sequence >= self.saved
        if header.sequence == self.saved:
            assert header.ledger.steps == self.saved_steps

    def teardown(self) -> None:
        if self.alive:
            self.ask("kill")
        for child in self.forked:
            os.kill(child, signal.SIGKILL)
        shutil.rmtree(self.root)


@pytest.fixture(scope="module")
def robots() -> Iterator[Robots]:
    started = Robots()
    yield started
    started.end()


def live(
    robots: Robots, bundle: Path, lives: int, events: int, seed_of_lives: int | None = None
) -> Counter[str]:
    counts: Counter[str] = Counter()
    fields = {"robots": robots, "bundle": bundle, "counts": counts}
    machine = type("Life", (FolderLife,), fields)
    if seed_of_lives is not None:
        machine = seed(seed_of_lives)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=events,
            deadline=None,
            # Shrinking restarts thousands of robots. A failure prints the whole life as it was.
            phases=(Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
    return counts


@pytest.mark.case("E4")
@pytest.mark.parametrize("fault", [("pwrite", "kill before"), ("pwrite", "fail")])
def test_a_record_that_never_reached_the_disk_is_not_charged_and_wears_nothing(
    robots: Robots, tiny_bundle: Path, fault: tuple[str, str]
) -> None:
    machine = type("Life", (FolderLife,), {"robots": robots, "bundle": tiny_bundle})()
    machine.begin()
    machine.step(1, True)
    machine.save(fault)
    if machine.alive:
        machine.kill()
    machine.start(restore=False)
    for _ in range(SAVES_A_DAY):
        machine.step(1, True)
        machine.save(None)
    for _ in range(6):  # each takes the writes and gives them back: two records
        machine.step(30, False)
        machine.close()
        machine.start(restore=False)
    machine.the_flash_gets_no_more_than_the_wear_budget()
    assert machine.saved > 1
    machine.teardown()


@pytest.mark.case("E2", "E3", "E4", "E5", "E6")
def test_budgets_and_snapshots_survive_every_order_of_events(
    robots: Robots, tiny_bundle: Path
) -> None:
    live(robots, tiny_bundle, lives=10, events=30)


@pytest.mark.slow
@pytest.mark.case("E2", "E3", "E4", "E5", "E6")
def test_budgets_and_snapshots_survive_a_thousand_lives(robots: Robots, tiny_bundle: Path) -> None:
    live(robots, tiny_bundle, lives=1000, events=60)
