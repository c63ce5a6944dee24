"""What a session asks of Python and of the system so that its loop is on time; undone at close.

Some of it belongs to the whole process: locked memory, garbage, how threads take turns. Some
belongs to the thread that opens the session: priority, core, timer slack. Sessions share it: the
first one asks, the last one undoes.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stategate.contract.arguments import check_kinds
from stategate.contract.errors import RealTimeWarning, RuntimeFault, SpecError
from stategate.contract.failures import failures
from stategate.contract.numbers import positive, whole

_LOCK_ALL = 1 | 2 | 4  # of <sys/mman.h>: what is mapped now and later, each page once touched
_SET_SLACK, _GET_SLACK = 29, 30  # of <sys/prctl.h>
_MAY_LOCK = 1 << 14  # CAP_IPC_LOCK
_STATUS = Path("/proc/self/status")

Undo = Callable[[], object]


@dataclass(frozen=True, slots=True)
class RealTime:
    """What a session asks for so that its loop is on time; see `docs/guides/real-time.md`.

    Attributes:
        priority: Of the thread that opens the session, under SCHED_FIFO, 1 to 99; None leaves it.
        core: CPU that this thread runs on, and no other; None leaves it where it is.
        lock_memory: Whether memory stays in RAM once it was touched.
        garbage: ``freeze`` keeps the collector from looking at what is there now; ``off`` also ends
            collections, so that reference cycles are never freed; ``leave`` does nothing.
        switch_us: Longest wait in microseconds for another thread that runs Python code; None
            leaves Python's 5,000.
        warm_up: Steps that are computed and not committed, before the first one that counts.
        on_lack: ``warn`` says once what could not be had; ``raise`` refuses to open.
    """

    priority: int | None = 20
    core: int | None = None
    lock_memory: bool = True
    garbage: Literal["freeze", "off", "leave"] = "freeze"
    switch_us: float | None = 50.0
    warm_up: int = 200
    on_lack: Literal["warn", "raise"] = "warn"

    def __post_init__(self) -> None:
        """Refuse numbers that are none, and policies that do not exist."""
        check_kinds(self)
        for name, least in (("priority", 1), ("core", 0), ("warm_up", 0)):
            if name == "warm_up" or getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.priority is not None and self.priority > 99:
            raise SpecError("priority must be at most 99", found=self.priority)
        if self.switch_us is not None:
            positive("switch_us", self.switch_us, 1e6)
        if self.garbage not in ("freeze", "off", "leave"):
            raise SpecError("unknown garbage", found=self.garbage, expected="freeze, off or leave")
        if self.on_lack not in ("warn", "raise"):
            raise SpecError("unknown on_lack", found=self.on_lack, expected="warn or raise")


class _Lack(Exception):
    """The system does not give something; the text says what, why, and the remedy."""


@dataclass(slots=True)
class _Share:
    wish: object
    undo: Undo
    sessions: int = 1


# By what it is, and by the thread that has it, 0 for the process.
_SHARES: dict[tuple[str, int], _Share] = {}
_LOCK = threading.Lock()


class Hold:
    """What a session got, until it is released.

    Attributes:
        lacks: What could not be had, each with the reason and the remedy.
    """

    def __init__(self, wishes: RealTime) -> None:
        """Ask for everything."""
        self._shares: list[tuple[str, int]] = []
        thread = threading.get_native_id()
        lacks = []
        requests: tuple[tuple[str, int, object, Callable[[], Undo]], ...] = (
            ("priority", thread, wishes.priority, lambda: _priority(thread, wishes.priority or 1)),
            ("core", thread, wishes.core, lambda: _core(thread, wishes.core or 0)),
            ("slack", thread, True, lambda: _slack(thread)),
            ("switch_us", 0, wishes.switch_us, lambda: _switch(wishes.switch_us or 0.0)),
            ("lock_memory", 0, wishes.lock_memory or None, _lock_memory),
            ("garbage", 0, wishes.garbage, lambda: _garbage(wishes.garbage)),
        )
        try:
            for name, owner, wish, take in requests:
                if wish is not None:
                    try:
                        self._share((name, owner), wish, take)
                    except _Lack as lack:
                        lacks.append(str(lack))
            self.lacks = tuple(lacks)
            if lacks and wishes.on_lack == "raise":
                raise RuntimeFault(
                    "the session is not opened, because real time could not be had",
                    found="; ".join(lacks),
                    remedy="do as it says, or RealTime(on_lack='warn') to go on without",
                )
            if lacks:
                warnings.warn("not in real time: " + "; ".join(lacks), RealTimeWarning, 5)
        except BaseException:
            self.release()
            raise

    def _share(self, key: tuple[str, int], wish: object, take: Callable[[], Undo]) -> None:
        with _LOCK:
            share = _SHARES.get(key)
            if share is None:
                _SHARES[key] = _Share(wish, take())
            elif share.wish != wish:
                raise SpecError(
                    f"another session of this {'thread' if key[1] else 'process'} has asked for "
                    f"another {key[0]}",
                    found=repr(wish),
                    expected=repr(share.wish),
                    remedy="give both sessions the same RealTime, or close the other one first",
                )
            else:
                share.sessions += 1
            self._shares.append(key)

    def release(self) -> None:
        """Undo what no other session needs; a second call does nothing."""
        with _LOCK:
            while self._shares:
                key = self._shares.pop()
                share = _SHARES[key]
                share.sessions -= 1
                if share.sessions == 0:
                    del _SHARES[key]
                    with suppress(OSError):  # a thread that has ended needs nothing
                        share.undo()


def _priority(thread: int, priority: int) -> Undo:
    try:
        before, old = os.sched_getscheduler(thread), os.sched_getparam(thread)
        # What the thread starts gets none of it.
        fifo = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        if before & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR):
            return bool  # whoever gave it one already knows better
        os.sched_setscheduler(thread, fifo, os.sched_param(priority))
    except failures(OSError, AttributeError) as problem:
        raise _Lack(
            f"the thread has no priority ({_reason(problem)}): LimitRTPRIO={priority} in the "
            f"systemd unit, or ulimit -r {priority} by root, or setcap cap_sys_nice+ep on python"
        ) from None

    def undo() -> None:
        try:
            os.sched_setscheduler(thread, before, old)
        except PermissionError:  # only root takes this flag away again
            os.sched_setscheduler(thread, before | os.SCHED_RESET_ON_FORK, old)

    return undo


def _core(thread: int, core: int) -> Undo:
    try:
        before = os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, {core})
    except failures(OSError, AttributeError) as problem:
        able = ", ".join(map(str, sorted(os.sched_getaffinity(0)))) if os.name == "posix" else ""
        raise _Lack(
            f"the thread cannot run on core {core} ({_reason(problem)}): take one of {able}"
        ) from None
    return lambda: os.sched_setaffinity(thread, before)


def _slack(thread: int) -> Undo:
    """Sleeps that end when they should, and not up to 50 microseconds later."""
    try:
        libc = ctypes.CDLL(None)
        before = libc.prctl(_GET_SLACK, 0, 0, 0, 0)
        libc.prctl(_SET_SLACK, 1, 0, 0, 0)
    except failures(OSError, AttributeError):
        return bool  # it is Linux's, and so is the slack
    if before <= 0:  # a thread that has a priority has none
        before = 50_000

    def undo() -> None:
        if threading.get_native_id() == thread:  # nobody sets it for another
            libc.prctl(_SET_SLACK, before, 0, 0, 0)

    return undo


def _switch(longest_us: float) -> Undo:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, longest_us / 1e6))
    return lambda: sys.setswitchinterval(before)


def _lock_memory() -> Undo:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    fields = {}
    with suppress(OSError):
        lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
        fields = {name: value.split() for name, _, value in lines}
    remedy = "LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited by root"
    may = int(fields.get("CapEff", ["0"])[0], 16) & _MAY_LOCK
    if limit != resource.RLIM_INFINITY and not may:
        # Below the limit it would succeed, and a later allocation would fail.
        raise _Lack(f"memory is not locked (at most {limit:,} bytes may be): {remedy}")
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        status = libc.mlockall(_LOCK_ALL)
    except AttributeError:
        raise _Lack("memory is not locked (this system has no mlockall): use Linux") from None
    if status != 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "unknown")
        raise _Lack(f"memory is not locked ({reason}): {remedy}")
    was_locked = fields.get("VmLck", ["0"])[0] != "0"
    return bool if was_locked else libc.munlockall


def _garbage(how: str) -> Undo:
    if how == "leave":
        return bool
    was_enabled, were_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    if how == "off":
        gc.disable()

    def undo() -> None:
        if not were_frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()

    return undo


def _reason(problem: BaseException) -> str:
    return problem.strerror if isinstance(problem, OSError) and problem.strerror else "not Linux"
