"""Time as a dependency: the real clock, and one that a test moves by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol, runtime_checkable

from stategate.contract.failures import failures

_NS_PER_SECOND = 1_000_000_000

# A sleeping thread is woken late by the kernel's timer slack (50 us by default) and the scheduler.
SPIN_NS = 100_000


_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def since_boot() -> tuple[str, int]:
    """Which start of the machine this is, and nanoseconds since then, sleep included.

    Nobody can set this clock, so that it measures how much time really passed between two
    processes. It says nothing about the time that the machine was off.

    Returns:
        The kernel's name of this start, empty where it has none, and the time.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except failures(OSError, UnicodeDecodeError):
        boot = ""
    return boot, boot_ns()


def boot_ns() -> int:
    """Nanoseconds since the machine started, those in which it was suspended included."""
    return time.clock_gettime_ns(_BOOT_CLOCK)


@runtime_checkable
class Clock(Protocol):
    """What a loop needs of time."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment; must not go backwards."""
        ...

    def sleep_until_ns(self, due_ns: int) -> None:
        """Return when ``now_ns() >= due_ns``; at once where that is already so."""
        ...


class MonotonicClock:
    """The system's monotonic clock.

    It sleeps until shortly before the moment and spins through the rest, because a sleep alone
    ends tens of microseconds late. The spin burns at most ``spin_ns`` of one core per call: 1 % at
    100 Hz with the default. With 0 it only sleeps.

    Args:
        spin_ns: How long before the moment the sleep ends.
    """

    __slots__ = ("_spin_ns",)

    def __init__(self, spin_ns: int = SPIN_NS) -> None:
        self._spin_ns = spin_ns

    def now_ns(self) -> int:
        """``time.monotonic_ns()``."""
        return time.monotonic_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        """Sleep, then spin; gives up if the clock goes backwards, so that it always returns."""
        last_ns = time.monotonic_ns()
        pause_ns = due_ns - last_ns - self._spin_ns
        if pause_ns > 0:
            time.sleep(pause_ns / _NS_PER_SECOND)
        while last_ns < due_ns:
            now_ns = time.monotonic_ns()
            if now_ns < last_ns:
                return
            last_ns = now_ns


class ManualClock:
    """A clock that stands still until it is moved; sleeping moves it, and takes no time.

    Attributes:
        wake_late_ns: How much later than asked every sleep ends.

    Args:
        now_ns: Where it starts.
        wake_late_ns: Initial value of the attribute.
    """

    __slots__ = ("_now_ns", "wake_late_ns")

    def __init__(self, now_ns: int = 0, wake_late_ns: int = 0) -> None:
        self._now_ns = now_ns
        self.wake_late_ns = wake_late_ns

    def now_ns(self) -> int:
        """Where it was moved to."""
        return self._now_ns

    def sleep_until_ns(self, due_ns: int) -> None:
        """Move to ``due_ns`` and ``wake_late_ns`` further; stay where that lies in the past."""
        if due_ns > self._now_ns:
            self._now_ns = due_ns + self.wake_late_ns

    def advance_ns(self, elapsed_ns: int) -> None:
        """Let time pass; a negative amount is a clock that goes backwards."""
        self._now_ns += elapsed_ns
