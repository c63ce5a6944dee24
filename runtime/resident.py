"""Resident memory of the process against its budget: after loading, and now and then.

What an engine adds is not known before it is loaded, and may depend on what a step is given. So an
export steps the bundle once in a process of its own, which is this module as a program, and what it
saw stands in the manifest; and a session looks again.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from stategate.contract import Budget, Bundle, Manifest
from stategate.contract.errors import BudgetWarning, MemoryBudgetError
from stategate.runtime.process import peak_rss_bytes, rss_bytes

EVERY_STEPS = 1000  # a look costs some 50 microseconds
_MEASURED_STEPS = 50


class ResidentWatch:
    """Holds the memory of the process against ``peak_resident_bytes``."""

    def __init__(self, budget: Budget, on_overrun: Callable[[], object]) -> None:
        """Start; what the process had used before is not looked at.

        Args:
            budget: Its limit, and ``on_resident``.
            on_overrun: Called when the limit is passed, under the policy ``warn``.
        """
        self._limit = budget.peak_resident_bytes or sys.maxsize
        self._warns, self._on_overrun = budget.on_resident == "warn", on_overrun
        self._peak = peak_rss_bytes()
        self._is_beyond = False
        self._left = 1  # an engine allocates most in its first step

    def step(self) -> None:
        """Count a step; look after the first one and after each ``EVERY_STEPS``.

        Raises:
            MemoryBudgetError: As in `look`.
        """
        self._left -= 1
        if self._left == 0:
            self._left = EVERY_STEPS
            self.look()

    def look(self) -> None:
        """Look at the memory in use, and at the highest that it was since the last look.

        Raises:
            MemoryBudgetError: The limit is passed, and the policy is not ``warn``.
        """
        peak, before = peak_rss_bytes(), self._peak
        self._peak = max(peak, before)
        found = max(rss_bytes(), peak if peak > before else 0)
        was_beyond, self._is_beyond = self._is_beyond, found > self._limit
        if not self._is_beyond:
            return
        if not self._warns:
            raise MemoryBudgetError(
                "the process uses more memory than its budget of peak_resident_bytes",
                found=f"{found:,} bytes resident",
                expected=f"at most {self._limit:,} bytes",
                remedy="give it more memory, try engine='native', or put on_resident='warn' "
                "beside a limit of your own; the memory of the model is as it was",
            )
        if not was_beyond:
            warnings.warn(
                f"{found:,} bytes are resident, beyond the budget of {self._limit:,}",
                BudgetWarning,
                stacklevel=4,
            )
            self._on_overrun()


def watch_resident(budget: Budget, on_overrun: Callable[[], object] = int) -> ResidentWatch | None:
    """A watch that has looked once, now that the engine is loaded; None without a limit.

    Raises:
        MemoryBudgetError: As in `ResidentWatch.look`.
    """
    if budget.peak_resident_bytes is None:
        return None
    watch = ResidentWatch(budget, on_overrun)
    watch.look()
    return watch


def engine_bytes(manifest: Manifest, engine: str) -> int:
    """What opening and stepping a bundle added where it was made, by the choice of an engine.

    Args:
        manifest: Of the bundle.
        engine: As in `Session.open`; of several the first.

    Returns:
        Bytes; 0 where it was not measured.
    """
    native = manifest.native
    if engine == "auto":
        engine = native.fastest or "onnxruntime" if native is not None else "onnxruntime"
    first, again = manifest.resident.get(engine.partition(",")[0], (0, 0))
    # The library itself is there already where another session loaded it.
    return again if engine == "onnxruntime" and "onnxruntime" in sys.modules else first


def measure(path: Path, engines: list[str]) -> dict[str, tuple[int, int]]:
    """Open a bundle twice in this process with each engine, and step its golden episode.

    Returns:
        Bytes by engine: what the first opening added to resident memory at its highest, and what
        the second one did.
    """
    from stategate.runtime.full_pool import open_stepper

    added = {}
    golden = Bundle.open(path).golden()
    steps = list(islice(golden, _MEASURED_STEPS)) if golden is not None else []
    with ExitStack() as opened:
        for engine in engines:
            seen = []
            for _ in range(2):
                before, peak = rss_bytes(), peak_rss_bytes()
                stepper = open_stepper(path, engine=engine)
                opened.callback(stepper.close)
                for inputs in steps:
                    stepper.step(**inputs)
                highest = peak_rss_bytes()
                seen.append((highest if highest > peak else rss_bytes()) - before)
            added[engine] = (seen[0], max(0, seen[1]))
    return added


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2:])))
