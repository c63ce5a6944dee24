from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int: ...
    def sleep_until_ns(self, due_ns: int) -> None: ...


class MonotonicClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until_ns(self, due_ns: int) -> None:
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)


class ManualClock:
    def __init__(self, start_ns: int = 0) -> None:
        self.ns = start_ns

    def now_ns(self) -> int:
        return self.ns

    def sleep_until_ns(self, due_ns: int) -> None:
        self.ns = max(self.ns, due_ns)
