"""What a wrapping came to: the threshold that is chosen, the report, the calibration record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from stategate.calibration.wrap.backbone import Backbone
from stategate.calibration.wrap.judging import Tally
from stategate.calibration.wrap.recordings import Stream
from stategate.calibration.wrap.report import WrapReport
from stategate.common.statistics import ratio_interval
from stategate.contract import CalibrationRecord
from stategate.contract.calibration import CurvePoint, GateCalibration
from stategate.models.memories.wrapped import RememberingPolicy
from stategate.models.weights import weights_sha256

Threshold: TypeAlias = "float | Literal['auto']"

WELCOME = 65_000  # recorded steps that leave nothing to ask for
_POOR = 0.2  # share of the memoryless error that a memory which is warned of leaves
_LONG = 8192
"""Steps of a held-out recording from which on a threshold of 0 can be trusted: from an empty
memory, short recordings hide what is lost later."""


class Parts(NamedTuple):
    """Recordings that are trained on, and recordings that are held out."""

    training: list[Stream]
    held_out: list[Stream]

    @property
    def steps(self) -> tuple[int, int]:
        """Of all that is trained on, and of all that is held out."""
        training, held_out = (sum(len(stream.labels) for stream in part) for part in self)
        return training, held_out

    @property
    def longest(self) -> int:
        """Steps of the longest held-out recording."""
        return max(len(stream.labels) for stream in self.held_out)


@dataclass(frozen=True, slots=True)
class Results:
    """What a course came to; fields as in `WrapReport`."""

    hard_rate: float
    memoryless: Tally
    chunk: int
    price: float
    iterations: int
    warm_iterations: int
    threshold: float
    tallies: dict[str, Tally]
    curve: dict[float, Tally]
    allowed_loss: float

    def report(
        self, policy: RememberingPolicy, backbone: Backbone, parts: Parts, seconds: float
    ) -> WrapReport:
        """The record that is kept of it."""
        gate = self.tallies["gate"]
        lost, bound = gate.lost(self.tallies["always"])
        without = self.memoryless.row("without")
        training, held_out = parts.steps
        return WrapReport(
            backbone=backbone.source,
            backbone_sha256=backbone.sha256,
            features=len(policy.mean),
            actions=len(policy.action_mean),
            continuous=gate.continuous,
            training_steps=training,
            held_out_steps=held_out,
            longest_stream=parts.longest,
            hard_rate=self.hard_rate,
            hard_judged=int(gate.judged.sum()),
            memoryless_accuracy=without.accuracy,
            memoryless_error=without.action_error,
            chunk=self.chunk,
            price=self.price,
            iterations=self.iterations,
            warm_iterations=self.warm_iterations,
            threshold=self.threshold,
            steps_per_write=1.0 / max(gate.write_rate, 1e-9),
            lost_points=lost,
            lost_bound=bound,
            rows=tuple(
                tally.row(rule, self.threshold if rule == "gate" else None)
                for rule, tally in self.tallies.items()
            ),
            curve=tuple(tally.row("gate", value) for value, tally in self.curve.items()),
            state_bytes=policy.step_spec().state_bytes,
            seconds=seconds,
            warnings=tuple(self._warnings(backbone, parts, lost, bound)),
        )

    def _warnings(
        self, backbone: Backbone, parts: Parts, lost: float, bound: float | None
    ) -> Iterator[str]:
        recorded = sum(parts.steps)
        if recorded < WELCOME // 2:
            yield f"{recorded:,} recorded steps are few; {WELCOME:,} are better"
        if parts.longest < _LONG:
            yield (
                f"no held-out recording has {_LONG:,} steps: where the memory is not emptied more "
                "often than in them, more may be lost than they show"
            )
        if bound is not None and lost <= self.allowed_loss < bound:
            yield (
                f"{bound:.4f} may be lost and {self.allowed_loss:g} is allowed: record more to know"
            )
        always = self.tallies["always"]
        if always.mean > _POOR * self.memoryless.mean:
            yield (
                f"the memory itself has learned a part only: error {always.mean:.3f} at hard "
                f"labels where every step writes, {self.memoryless.mean:.3f} without a memory"
            )
        if not backbone.sha256:
            yield "the backbone runs elsewhere: nothing notices that its weights are others"
        if self.tallies["gate"].write_rate > 0.5:
            yield "the gate saves little: most steps write"

    def calibration(
        self, policy: RememberingPolicy, episodes: str, steps: int
    ) -> CalibrationRecord:
        """The threshold as `stategate.make` takes it."""
        curve = []
        for value, tally in sorted(self.curve.items()):
            row = tally.row("gate", value)
            writes = ratio_interval(tally.writes, tally.steps)
            curve.append(
                CurvePoint(
                    value,
                    row.write_rate,
                    row.write_rate,
                    row.accuracy,
                    write_interval=writes,
                    accuracy_interval=None if row.accuracy is None else row.interval,
                )
            )
        (gate,) = policy.step_spec().gates
        rule = f"at most {self.allowed_loss:g} lost against writing always, never above 0"
        rate = self.tallies["gate"].write_rate
        chosen = GateCalibration(gate.name, self.threshold, rate, rule, tuple(curve))
        return CalibrationRecord(weights_sha256(policy), episodes, steps, (chosen,))


def chosen(
    curve: Mapping[float, Tally],
    always: Tally,
    allowed_loss: float,
    longest: int,
    threshold: Threshold = "auto",
) -> float | None:
    """The threshold: the highest that loses no more than is allowed; None where none does.

    Args:
        curve: What each threshold does on held-out recordings.
        always: What writing always does.
        allowed_loss: Accuracy, or error in spreads of the action.
        longest: Steps of the longest held-out recording; the highest threshold is taken where it is
            long enough, and even the upper end of the loss is allowed.
        threshold: Asked for; its loss has to be allowed too.
    """
    for value in sorted(curve, reverse=True):
        lost, bound = curve[value].lost(always)
        careful = threshold == "auto" and value == 0.0
        if careful and (longest < _LONG or bound is None or bound > allowed_loss):
            continue
        if lost <= allowed_loss and curve[value].write_rate > 0:
            return value
    return None
