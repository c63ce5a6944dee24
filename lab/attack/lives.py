"""Robots that are killed, pools whose rows must not see each other, sessions that come and go."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.attack.corpus import sealed
from lab.attack.places import observation
from lab.power_loss import POLICIES, lose_power
from stategate.contract.staging import scratch_folder
from stategate.runtime import Session, SnapshotPolicy
from stategate.runtime.base.process import rss_bytes

EVENTS_OF_A_LIFE = 60
_LEAST_LIVES = 10
_WARM = 50  # sessions until engines and allocators have what they keep
_GROWTH_BYTES = 16 << 20


def robots_lives(kills: int, seed: int) -> tuple[int, int, int]:
    """Lives of snapshot folders in any order of events, until robots were killed so often.

    Returns:
        Kills; events before and after which the budgets were held against what was seen; and how
        many lives ended in a loss or a broken budget.
    """
    folders = import_module("tests.runtime.test_folder_life")
    pools = import_module("tests.runtime.test_pool")
    robots = folders.Robots()
    killed = events = lost = 0
    with scratch_folder() as scratch, ExitStack() as stack:
        stack.callback(robots.end)
        bundle = sealed(scratch / "bundle", pools.Fragile()).path
        while killed < kills and not lost:
            seed += 1
            lives = max(_LEAST_LIVES, min(100, (kills - killed) // 8))
            try:
                counts = folders.live(robots, bundle, lives, EVENTS_OF_A_LIFE, seed)
                killed, events = killed + counts["kills"], events + counts["events"]
            except AssertionError as problem:
                print(problem)
                lost += 1
    return killed, events, lost


def bleeding_pools(runs: int, seed: int) -> tuple[int, int]:
    """Sessions that join, leave, fail and step in a pool, beside each of them alone.

    Returns:
        Operations after which every row was compared bit for bit, and runs in which one differed.
    """
    pools = import_module("tests.runtime.test_pool")
    test: Any = pools.test_no_session_ever_sees_another
    operations_done = 0
    with scratch_folder() as folder:
        pool = sealed(folder / "pool", pools.Fragile(), pools.ROWS).path
        lone = sealed(folder / "lone", pools.Fragile()).path

        @hypothesis.seed(seed)
        @settings(
            max_examples=runs,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, pools.ROWS), st.lists(pools.OPERATIONS, max_size=40))
        def run(first: int, operations: list[Any]) -> None:
            nonlocal operations_done
            operations_done += first + len(operations)
            test.hypothesis.inner_test(pool, lone, first, operations)

        try:
            run()
        except AssertionError as problem:
            print(problem)
            return operations_done, 1
    return operations_done, 0


def sessions_that_come_and_go(bundle: Path, times: int) -> tuple[int, int]:
    """Open, step, save and close, again and again in one process.

    Returns:
        How many sessions, and what is left: descriptors, threads, files, and 1 for memory that grew
        by more than 16 MiB.
    """
    with scratch_folder() as root:
        before = (0, 0, 0)
        grown = 0
        for turn in range(times + _WARM):
            if turn == _WARM:
                before, grown = _open_things(root), rss_bytes()
            policy = SnapshotPolicy(root / "folder")
            with Session.open(bundle, snapshots=policy) as session:
                session.restore()
                session.step(x=observation(turn))
                session.save()
        after = _open_things(root)
        leaks = sum(max(0, b - a) for a, b in zip(before, after, strict=True))
        return times, leaks + (rss_bytes() - grown > _GROWTH_BYTES)


def _open_things(root: Path) -> tuple[int, int, int]:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return descriptors, threading.active_count(), len(list(root.rglob("*")))


def cut_power(bundle: Path, steps: int, samples: int) -> tuple[int, int]:
    """Every moment of a run as the last one; see `lab.power_loss`.

    Returns:
        Cuts, and after how many of them the newest safe state was gone or another one came back.
    """
    cuts = lost = 0
    for policy in POLICIES.values():
        row = lose_power(bundle, policy, steps, samples)
        for kind in ("in_order", "out_of_order"):
            cuts += row[kind]["cuts"]
            lost += row[kind]["lost"] + row[kind]["garbage"]
    return cuts, lost
