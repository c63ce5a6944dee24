"""A black box as a page sees it: every step at once, and any of them in detail."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stategate.contract import Manifest
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.recording import Gap, Keyframe, Step
from stategate.runtime.check.steps import RecordedSteps, Replayed
from stategate.runtime.engines.engine import EngineChoice
from stategate.runtime.watch.live import about
from stategate.runtime.watch.tap import (
    BEGAN,
    FAULT,
    SUPPRESSED,
    WROTE,
    Moment,
    Row,
    drawn,
    gate_values,
)

_MOST_MOMENTS = 100


class RecordedSource:
    """Steps a black box through once, and again from a keyframe for whoever asks for a step."""

    def __init__(
        self, path: Path, bundle: Path, engine: EngineChoice | None = None, **more: Any
    ) -> None:
        """Step it through."""
        self._steps, self._lock = RecordedSteps(path, bundle, engine), threading.Lock()
        rows: list[Row] = []
        self._gaps = begins = suppressed = 0
        is_new = False
        for event in self._steps.events():
            if isinstance(event, Gap):
                self._gaps += 1
            elif isinstance(event, Keyframe) and event.is_begin and rows:
                begins, is_new = begins + 1, True
            elif isinstance(event, Replayed):
                before, suppressed = suppressed, self._steps.session.ledger.suppressed_writes
                flags = WROTE * event.wrote | SUPPRESSED * (suppressed > before)
                flags |= FAULT * bool(event.fault) | BEGAN * is_new
                gates = gate_values(list(event.gates.values()))
                rows.append([event.recorded.step, None, flags, *gates])
                is_new = False
        ledger = asdict(self._steps.session.ledger)
        # Keyframes that are loaded count as resets here, and were none then.
        self._ledger = ledger | {"resets": begins, "restores": 0}
        self._rows, note = drawn(rows)
        self._more = note | more

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that was recorded."""
        return self._steps.bundle.manifest

    def about(self) -> dict[str, Any]:
        """See `Source`."""
        steps = self._steps
        source = f"black box {steps.recording.path.name}"
        facts = about(
            steps.bundle.manifest, steps.bundle.digest, steps.session.engine_name, source=source
        )
        return facts | {"is_recording": True} | self._more

    def status(self) -> dict[str, Any]:
        """See `Source`."""
        gaps = f"The recording has gaps: {self._gaps}." if self._gaps else ""
        return {
            "ledger": self._ledger,
            "gauges": [],
            "thresholds": dict(self.manifest.step.thresholds),
            "health": None,
            "problem": gaps,
        }

    def since(self, count: int) -> tuple[list[Row], int]:
        """See `Source`."""
        return self._rows[count:], len(self._rows)

    def moment(self, step: int) -> dict[str, Any] | None:
        """See `Source`."""
        first, last = self._steps.span
        if not first <= step <= last:
            return None
        with self._lock:
            return self._moment(step)

    def _moment(self, step: int) -> dict[str, Any] | None:
        steps = self._steps
        before: dict[str, Array] = {}
        for event in steps.events(step):
            if isinstance(event, Replayed) and event.recorded.step == step:
                inputs, wrote = event.recorded.inputs, event.wrote
                parts = (step, inputs, event.outputs, event.gates, before, steps.states(), wrote)
                return Moment(*parts, event.fault).record()
            last = event.recorded if isinstance(event, Replayed) else event
            if isinstance(last, Step | Keyframe) and last.step == step - 1:
                before = steps.states()
        return None

    def look(self, viewers: int) -> None:
        """See `Source`."""

    def page_data(self) -> dict[str, Any]:
        """All that a page without a server needs: the steps, and the last writes in detail."""
        wrote = [row[0] for row in self._rows if row[2] & (WROTE | FAULT)][-_MOST_MOMENTS:]
        moments = {step: self.moment(step) for step in wrote}
        facts = {"about": self.about(), "status": self.status()}
        return facts | {"rows": self._rows, "moments": moments}

    def close(self) -> None:
        """Free the engine."""
        self._steps.close()
