"""Resident memory of the process against its budget: after loading, and now and then.

What an engine adds is not known before it is loaded, and may depend on what a step is given. So an
export steps the bundle once in a process of its own, in `stategate.runtime.check.resident`, and
what it saw stands in the manifest; and a session looks again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from stategate.contract import Budget, Manifest
from stategate.contract.errors import BudgetWarning, MemoryBudgetError
from stategate.runtime.base.process import peak_rss_bytes, rss_bytes

EVERY_STEPS = 1000  # a look costs some 50 microseconds


class ResidentWatch:
    """Holds the memory of the process against ``peak_resident_bytes``."""

    def __init__(self, budget: Budget, on_overrun: Callable[[], object]) -> None:
        """Start; what the process had used before is not looked at."""
        self._limit = budget.peak_resident_bytes or sys.maxsize
        self._warns, self._on_overrun = budget.on_resident == "warn", on_overrun
        self._peak = peak_rss_bytes()
        self._is_beyond = False
        self._steps_to_look = 1  # an engine allocates most in its first step

    def step(self) -> None:
        """Count a step; look after the first one and after each ``EVERY_STEPS``."""
        self._steps_to_look -= 1
        if self._steps_to_look == 0:
            self._steps_to_look = EVERY_STEPS
            self.look()

    def look(self) -> None:
        """Look at the memory in use, and at the highest that it was since the last look."""
        peak, before = peak_rss_bytes(), self._peak
        self._peak = max(peak, before)
        resident_bytes = max(rss_bytes(), peak if peak > before else 0)
        was_beyond, self._is_beyond = self._is_beyond, resident_bytes > self._limit
        if not self._is_beyond:
            return
        if not self._warns:
            raise MemoryBudgetError(
                "the process uses more memory than its budget of peak_resident_bytes",
                found=f"{resident_bytes:,} bytes resident",
                expected=f"at most {self._limit:,} bytes",
                remedy="give it more memory, try engine='native', or put on_resident='warn' "
                "beside a limit of your own; the memory of the model is as it was",
            )
        if not was_beyond:
            warnings.warn(
                f"{resident_bytes:,} bytes are resident, beyond the budget of {self._limit:,}",
                BudgetWarning,
                stacklevel=4,
            )
            self._on_overrun()


def watch_resident(budget: Budget, on_overrun: Callable[[], object] = int) -> ResidentWatch | None:
    """A watch that has looked once, now that the engine is loaded; None without a limit."""
    if budget.peak_resident_bytes is None:
        return None
    watch = ResidentWatch(budget, on_overrun)
    watch.look()
    return watch


def engine_bytes(manifest: Manifest, engine: str) -> int:
    """What opening and stepping a bundle added where it was made, by the choice of an engine.

    Returns:
        Bytes; 0 where it was not measured.
    """
    native = manifest.native
    if engine == "auto":
        engine = native.fastest or "onnxruntime" if native is not None else "onnxruntime"
    first, again = manifest.resident.get(engine.partition(",")[0], (0, 0))
    # The library itself is there already where another session loaded it.
    return again if engine == "onnxruntime" and "onnxruntime" in sys.modules else first
