"""A black box, step by step with everything in it: for whoever shows it, or writes it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.check.recording import Gap, Keyframe, Opening, Recording, Step
from stategate.runtime.check.replay import open_stepper
from stategate.runtime.engines.engine import EngineChoice


@dataclass(frozen=True, slots=True)
class Replayed:
    """One step as it was taken again; arrays are overwritten by the next one."""

    recorded: Step  # number, inputs, and what came of it then
    outputs: Mapping[str, Array]  # by name
    gates: Mapping[str, Array]  # by name
    wrote: bool  # whether it wrote here
    fault: str  # what refused its write here; empty where nothing did


class RecordedSteps(Closeable):
    """A black box and the bundle that was recorded, opened to be stepped through.

        with RecordedSteps("robot.rec", "build/policy") as recorded:
            for event in recorded.events():
                if isinstance(event, Replayed):
                    print(event.recorded.step, event.gates, event.wrote)

    Whether it is what was recorded is for `stategate.replay` to say: here it is only stepped.

    Attributes:
        recording: The file.
        bundle: What steps.
        session: What steps it here; what it counted and which engine it has.
        span: Numbers of the first and the last step.
    """

    def __init__(
        self, path: str | Path, bundle: str | Path | Bundle, engine: EngineChoice | None = None
    ) -> None:
        """Open both."""
        self.recording, self.bundle = Recording(path), Bundle.open(bundle)
        self.recording.check_bundle(self.bundle)
        span = self.recording.span(self.bundle.manifest)
        if span is None:
            raise self.recording.nothing()
        self.span = span
        self._stepper = open_stepper(self.bundle, self.recording.opening, engine)
        self.session = self._stepper.session

    def states(self) -> dict[str, Array]:
        """Copies of the states after the last step."""
        return self._stepper.states()

    def events(self, first: int = 0) -> Iterator[Opening | Keyframe | Gap | Replayed]:
        """Everything from step ``first`` on, and what it takes to get there."""
        manifest, stepper = self.bundle.manifest, self._stepper
        start = 0
        if first:
            keyframes = (e for e in self.recording.events(manifest) if isinstance(e, Keyframe))
            start = max((e.step for e in keyframes if e.step < first), default=0)
        is_first = True
        for event in self.recording.events(manifest):
            if isinstance(event, Step):
                if event.step > start:
                    wrote = stepper.step(event)
                    yield Replayed(
                        event, self.session.outputs, self.session.gates, wrote, stepper.fault
                    )
                continue
            if isinstance(event, Keyframe) and event.step >= start:
                # A replay that parts from the recording goes on with what was recorded.
                if event.is_jump or is_first or stepper.chain != event.chain:
                    stepper.begin(event)
                is_first = False
            yield event

    def close(self) -> None:
        """Free the engine."""
        self.session.close()
