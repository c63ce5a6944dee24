"""Closed loops side by side: one model at several thresholds, each on its own state.

A gate decides on what earlier decisions left in memory, so every threshold lives a loop of its own;
rescoring one recorded loop would judge decisions that were never lived with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stategate.calibration.episodes import Report
from stategate.contract import Episode, GateSpec, StepSpec
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.contract.failures import failures, first_line
from stategate.models.step import StepModel, Tensors, initial_states, opens, threshold_inputs


@dataclass(frozen=True, slots=True)
class LoopCounts:
    """What loops at several thresholds did in one episode, or in several."""

    thresholds: NDArray[np.float64]  # ``(lanes,)`` float64
    steps: NDArray[np.int64]  # ``(episodes,)``
    writes: NDArray[np.int64]  # ``(episodes, lanes)`` steps with an open element
    openings: NDArray[np.int64]  # ``(episodes, lanes)`` open elements in all
    elements: int  # elements of the gate
    right: NDArray[np.int64]  # ``(episodes, lanes)`` answers that are as labelled
    judged: NDArray[np.int64]  # ``(episodes,)`` answers that have a label
    # ``(float outputs, lanes)`` squared difference to the reference's, summed
    gaps: NDArray[np.float64]
    sizes: NDArray[np.float64]  # ``(float outputs,)`` squares of the reference's, summed
    # ``(2, elements of all inputs)`` smallest and largest value of each
    inputs: NDArray[np.float64]

    def merged(self, other: LoopCounts) -> LoopCounts:
        """Of the episodes of both."""
        by_episode: dict[str, Any] = {
            name: np.concatenate((getattr(self, name), getattr(other, name)))
            for name in ("steps", "writes", "openings", "right", "judged")
        }
        lows, highs = zip(self.inputs, other.inputs, strict=True)
        return replace(
            self,
            **by_episode,
            gaps=self.gaps + other.gaps,
            sizes=self.sizes + other.sizes,
            inputs=np.stack((np.minimum(*lows), np.maximum(*highs))),
        )

    @property
    def output_error(self) -> NDArray[np.float64]:
        """``(lanes,)``; see `stategate.contract.calibration.CurvePoint`."""
        errors = np.sqrt(self.gaps / np.maximum(self.sizes, 1e-300)[:, None])
        return np.asarray(errors.max(axis=0, initial=0.0))


@dataclass(frozen=True, slots=True)
class GateSample:
    """Values of a gate, thinned evenly to at most ``most`` in constant memory."""

    every: int  # one step of so many is in it
    values: NDArray[np.float32]  # ``(steps, elements)`` float32
    most: ClassVar[int] = 200_000

    def merged(self, other: GateSample) -> GateSample:
        """Of both, as dense as the sparser of them."""
        every = max(self.every, other.every)
        parts = [one.values[:: every // one.every] for one in (self, other)]
        return GateSample(every, np.concatenate(parts)).thinned()

    def thinned(self) -> GateSample:
        """Thinned until it fits; ``every`` stays a power of two."""
        one = self
        while one.values.size > self.most:
            one = GateSample(one.every * 2, one.values[::2])
        return one


class LaneStep(NamedTuple):
    """One step of every lane; each tensor has a leading axis of lanes."""

    t: int  # number of the step
    outputs: dict[str, torch.Tensor]  # by name
    states: dict[str, torch.Tensor]  # what the next step sees
    gate: torch.Tensor  # values of the gate


class Lanes:
    """Steps a model in several lanes at once, each with a state and a threshold of its own."""

    def __init__(self, model: StepModel, gate: GateSpec) -> None:
        self.spec: StepSpec = model.step_spec()
        self.gate = gate
        self._model = model
        self._fixed = threshold_inputs(self.spec)
        self._others = {g: t for g, t in self.spec.thresholds.items() if g != gate.name}

    def run(self, thresholds: torch.Tensor, episode: Episode, report: Report) -> Iterator[LaneStep]:
        """Step every lane through an episode, from the initial state."""
        inputs, first = tensors_of(episode, self.spec), initial_states(self._model)
        states: Tensors = {n: t.expand(len(thresholds), *t.shape) for n, t in first.items()}
        for t in range(episode.steps):
            now = {name: array[t] for name, array in inputs.items()}
            step = self._step(t, thresholds, states, now)
            if not step.gate.isfinite().all():
                raise CalibrationError(
                    f"gate {self.gate.name!r} is not finite",
                    found=f"NaN or Inf in step {t}",
                    remedy="look for overflow in the model; a session would refuse this step",
                )
            yield step
            states = step.states
            report(t + 1)

    def _step(self, t: int, thresholds: torch.Tensor, states: Tensors, inputs: Tensors) -> LaneStep:
        lanes = torch.vmap(self._one, in_dims=(0, 0, None))
        try:
            return LaneStep(t, *lanes(thresholds, states, inputs))
        except failures(RuntimeError) as problem:
            raise CalibrationError(
                "the step cannot be run for several thresholds at once",
                found=first_line(problem),
                expected="a step that torch.vmap can map: no data-dependent Python, no .item()",
            ) from problem

    def _one(
        self, threshold: torch.Tensor, states: Tensors, inputs: Tensors
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        name = self.gate.threshold_input
        own = {name: threshold[None]} if name is not None else {}
        result = self._model.step({**inputs, **self._fixed, **own}, states)
        # As `commit` does it, but chosen by tensors: vmap has no branches.
        limits: dict[str, Any] = {**self._others, self.gate.name: threshold}
        is_open = {g: opens(result.gates[g], limit).any() for g, limit in limits.items()}
        after = {
            s.name: torch.where(is_open[s.gate], result.states[s.name], states[s.name])
            if s.gate in is_open
            else result.states[s.name]
            for s in self.spec.states
        }
        return dict(result.outputs), after, result.gates[self.gate.name]


def hard_gate(spec: StepSpec, name: str | None = None) -> GateSpec:
    """The hard gate that is meant: the only one, or the named one."""
    hard = {g.name: g for g in spec.deciding_gates if g.kind == "hard"}
    if name is None and len(hard) == 1:
        return next(iter(hard.values()))
    if name in hard:
        return hard[name]
    soft = [g.name for g in spec.gates if g.kind == "soft"]
    if hard:
        remedy = "name one of them with --gate"
    elif soft:
        remedy = (
            "a soft gate scales every write; RecurrentStep(..., write_threshold=0.0) and "
            "MinGru(..., write_threshold=0.0) make it hard"
        )
    else:
        remedy = (
            "export it without: a model without a gate, such as a lifted module, writes in every "
            "step and has no threshold"
        )
    raise CalibrationError(
        "the threshold cannot be chosen for this model",
        found=f"hard gates: {', '.join(hard) or 'none'}; soft gates: {', '.join(soft) or 'none'}",
        expected="one hard gate" if name is None else f"a hard gate {name!r}",
        remedy=remedy,
    )


def elements_of(gate: GateSpec) -> int:
    """Elements that open by themselves; a gate of step granularity opens as one."""
    return 1 if gate.granularity == "step" else math.prod(gate.shape)


def tensors_of(episode: Episode, spec: StepSpec) -> dict[str, torch.Tensor]:
    """Inputs ``(steps, *shape)`` of an episode that fits the model."""
    episode.check(spec)
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in episode.inputs.items()}


@torch.no_grad()
def roll(
    model: StepModel,
    episode: Episode,
    report: Report,
    *,
    gate: GateSpec,
    thresholds: Sequence[float],
    reference: float,
) -> LoopCounts:
    """Roll every threshold through an episode, from the initial state."""
    lanes = Lanes(model, gate)
    # float32, as the runtime compares: a threshold between two of its numbers decides as one.
    tried = torch.tensor([*thresholds, reference], dtype=torch.float32)
    floats = [t.name for t in lanes.spec.outputs if t.dtype.startswith("float")]
    gap = torch.zeros(len(floats), len(tried), dtype=torch.float64)
    writes, openings, right = torch.zeros(3, len(tried), dtype=torch.int64)
    judged = 0
    limits = tried.reshape(-1, *([1] * len(gate.shape)))
    for t, outputs, _, values in lanes.run(tried, episode, report):
        is_open = opens(values, limits).flatten(1)
        writes += is_open.any(1)
        openings += is_open.any(1) if elements_of(gate) == 1 else is_open.sum(1)
        for name, labels in episode.labels.items():
            if labels[t] >= 0:
                judged += 1
                right += outputs[name].flatten(1).argmax(1) == int(labels[t])
        for i, name in enumerate(floats):
            out = outputs[name].flatten(1).double()
            # The last lane is the reference: it keeps its own size in place of its error.
            gap[i, :-1] += (out[:-1] - out[-1]).square().sum(1)
            gap[i, -1] += out[-1].square().sum()
    return LoopCounts(
        thresholds=np.asarray(thresholds, dtype=np.float64),
        steps=np.array([episode.steps]),
        writes=writes[None, :-1].numpy(),
        openings=openings[None, :-1].numpy(),
        elements=elements_of(gate),
        right=right[None, :-1].numpy(),
        judged=np.array([judged]),
        gaps=gap[:, :-1].numpy(),
        sizes=gap[:, -1].numpy(),
        inputs=extremes(episode),
    )


@torch.no_grad()
def sample_gate(
    model: StepModel, episode: Episode, report: Report, *, gate: GateSpec, threshold: float
) -> GateSample:
    """Values of a gate's elements in closed loop; of a gate of step granularity the largest."""
    rows: list[NDArray[np.float32]] = []
    every = 1
    for t, _, _, values in Lanes(model, gate).run(torch.tensor([threshold]), episode, report):
        if t % every == 0:
            flat = values.flatten()
            rows.append((flat.amax()[None] if elements_of(gate) == 1 else flat).numpy())
        # Thinned on the way: an episode of any length is held in constant memory.
        if len(rows) * elements_of(gate) > GateSample.most:
            rows, every = rows[::2], every * 2
    return GateSample(every, np.stack(rows))


def extremes(episode: Episode) -> NDArray[np.float64]:
    """``(2, elements)``: smallest and largest value of every element of every input."""
    flat = [a.reshape(len(a), -1).astype(np.float64) for _, a in sorted(episode.inputs.items())]
    whole = np.concatenate(flat, axis=1)
    return np.stack((whole.min(axis=0), whole.max(axis=0)))


def check_changes(inputs: NDArray[np.float64], steps: int) -> None:
    """Refuse recordings in which nothing happens: what they say of a gate is its start alone.

    Args:
        inputs: ``(2, elements)``, see `extremes`, over all episodes.
        steps: Of all episodes.
    """
    if steps > 1 and (inputs[0] == inputs[1]).all():
        raise EpisodeError(
            "no input ever changes",
            found=f"constant numbers in all of {steps} steps",
            expected="recordings of what the model meets in use",
        )
