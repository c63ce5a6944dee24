"""The held-out table: what gate and schedules do on streams that nothing was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stategate.calibration.gates.scan import GateChooser, always, hard_gate, scan
from stategate.calibration.wrap.report import Row
from stategate.calibration.wrap.training import Labelled, Memoryless, errors
from stategate.common.statistics import ratio_interval
from stategate.contract.calibration import Interval
from stategate.models.memories.wrapped import RememberingPolicy

_CHUNK = 256
_FEWEST = 8  # pieces that an interval is taken over; long streams are cut into so many


@dataclass(frozen=True, slots=True)
class Tally:
    """What one rule did, piece by piece."""

    writes: NDArray[np.float64]  # ``(pieces,)``
    steps: NDArray[np.float64]  # ``(pieces,)``
    wrong: NDArray[np.float64]  # ``(pieces,)`` sum of `errors` at hard labels
    judged: NDArray[np.float64]  # ``(pieces,)`` hard labels
    continuous: bool  # whether errors are squared ones

    @property
    def write_rate(self) -> float:
        """Share of steps that write."""
        return float(self.writes.sum() / self.steps.sum())

    @property
    def mean(self) -> float:
        """Of `errors` at hard labels."""
        return float(self.wrong.sum() / max(1.0, self.judged.sum()))

    @property
    def error(self) -> float:
        """Share of hard labels that is missed, or the root mean square error."""
        return self.mean**0.5 if self.continuous else self.mean

    def row(self, rule: str, threshold: float | None = None) -> Row:
        """As it is reported."""
        ends = ratio_interval(self.wrong, self.judged)
        if self.continuous:
            interval = ends and Interval(max(0.0, ends.low) ** 0.5, max(0.0, ends.high) ** 0.5)
            return Row(rule, self.write_rate, None, self.error, interval, threshold)
        interval = ends and Interval(max(0.0, 1 - ends.high), min(1.0, 1 - ends.low))
        return Row(rule, self.write_rate, 1 - self.error, None, interval, threshold)

    def lost(self, reference: Tally) -> tuple[float, float | None]:
        """Error above that of another rule, and the upper end of its interval."""
        # a^2 - b^2 = (a + b) (a - b): the differences of squares of all pieces add up to a - b.
        scale = (self.error + reference.error) or 1.0
        gaps = (self.wrong - reference.wrong) / (scale if self.continuous else 1.0)
        interval = ratio_interval(gaps, self.judged)
        return self.error - reference.error, None if interval is None else interval.high


@torch.no_grad()
def tallied(
    policy: RememberingPolicy,
    streams: Sequence[Labelled],
    rules: Mapping[str, GateChooser],
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, Tally]:
    """Live by several rules side by side, in every stream from an empty memory."""
    longest = max(len(stream.labels) for stream in streams)
    count = len(streams)
    pieces = -(-_FEWEST // count)
    lengths = torch.tensor([len(stream.labels) for stream in streams])
    # Of each rule, stream and piece of the stream: writes, steps, errors and hard labels.
    sums = torch.zeros(4, len(rules), count, pieces, dtype=torch.float64)
    choosers = list(rules.values())
    S = torch.zeros(len(rules) * count, policy.memory.d_key, policy.memory.d_value)
    b = torch.zeros(len(rules) * count, policy.memory.d_value)

    def choose(t: int, logits: Tensor) -> Tensor:
        parts = logits.chunk(len(choosers))
        return torch.cat([rule(t, part) for rule, part in zip(choosers, parts, strict=True)])

    for first in range(0, longest, _CHUNK):
        at = torch.arange(first, min(first + _CHUNK, longest))
        alive = at[:, None] < lengths
        features, labels, hard = (
            torch.stack([_padded(getattr(s, name), at) for s in streams], 1)
            for name in ("features", "labels", "hard")
        )
        # Rule-major rows: row r * streams + i is stream i under rule r.
        p = policy.project(features.repeat(1, len(rules), 1))
        scanned = scan(policy.memory, p, S, b, choose)
        S, b = scanned.S, scanned.b
        judged = (hard & alive).repeat(1, len(rules))
        many = labels.repeat(1, len(rules), *[1] * (labels.ndim - 2))
        wrong = errors(policy.memory.act(scanned.o, p.x).flatten(0, 1), many.flatten(0, 1))
        live = alive.repeat(1, len(rules))
        figures = torch.stack(
            (
                scanned.g.squeeze(-1) * live,
                live.float(),
                wrong.reshape(judged.shape) * judged,
                judged.float(),
            )
        ).double()
        piece = (at[:, None] * pieces // lengths).clamp(max=pieces - 1)  # (time, streams)
        by_rule = figures.reshape(4, len(at), len(rules), count).permute(0, 2, 3, 1)
        sums.scatter_add_(3, piece.T.expand(4, len(rules), count, len(at)), by_rule)
        report(int(at[-1]) + 1)
    tables = sums.flatten(2).numpy()
    results = {}
    for i, name in enumerate(rules):
        writes, steps, wrong, judged = tables[:, i]
        results[name] = Tally(writes, steps, wrong, judged, streams[0].continuous)
    return results


def without_memory(probe: Memoryless, streams: Sequence[Labelled]) -> Tally:
    """What the net without memory does."""
    wrong = np.array([float(probe.errors(stream).sum()) for stream in streams])
    judged = np.array([float(stream.hard.sum()) for stream in streams])
    steps = np.array([float(len(stream.hard)) for stream in streams])
    return Tally(np.zeros_like(steps), steps, wrong, judged, streams[0].continuous)


def _padded(array: Tensor, at: Tensor) -> Tensor:
    """Steps ``at``; the last one again where the recording is over."""
    return array[at.clamp(max=len(array) - 1)]


def never(t: int, logits: Tensor) -> Tensor:
    """Write in no step."""
    return torch.zeros_like(logits)


def as_often(rate: float, seed: int) -> dict[str, GateChooser]:
    """The schedules that write as often as a gate without looking."""
    draws = torch.Generator().manual_seed(seed)
    count = iter(range(1 << 62))

    def by_chance(t: int, logits: Tensor) -> Tensor:
        return (torch.rand(logits.shape, generator=draws) < rate).to(logits.dtype)

    def periodic(t: int, logits: Tensor) -> Tensor:
        step = next(count)
        # As many writes as the rate asks for, evenly spread, whatever the rate is.
        return torch.full_like(logits, float(int((step + 1) * rate) > int(step * rate)))

    return {"random": by_chance, "periodic": periodic}


def at_thresholds(thresholds: Sequence[float]) -> dict[str, GateChooser]:
    """The gate at several thresholds, and what it is compared with."""
    gates: dict[str, GateChooser] = {f"{value:g}": hard_gate(value) for value in thresholds}
    return {**gates, "always": always, "never": never}
