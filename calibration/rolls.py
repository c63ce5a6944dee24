"""Closed loops side by side: one model at several thresholds, each on its own state.

A gate decides on what earlier decisions left in memory, so every threshold lives a loop of its own;
rescoring one recorded loop would judge decisions that were never lived with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from stategate.contract import Episode, GateSpec, StepSpec
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.contract.failures import failures, first_line
from stategate.models.step import StepModel, Tensors, initial_states, opens, threshold_inputs

Report = Callable[[int], None]

OPEN, SHUT = -3.0e38, 3.0e38
"""Thresholds below and above every finite gate value that a model computes with."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """Counts of loops at several thresholds, of one episode or of several.

    Attributes:
        thresholds: ``(lanes,)`` float64.
        steps: ``(episodes,)``.
        writes: ``(episodes, lanes)`` steps with an open element.
        openings: ``(episodes, lanes)`` open elements in all.
        elements: Elements of the gate.
        right: ``(episodes, lanes)`` answers that are as labelled.
        judged: ``(episodes,)`` answers that have a label.
        gaps: ``(float outputs, lanes)`` squared difference to the reference's, summed.
        sizes: ``(float outputs,)`` squares of the reference's, summed.
        inputs: ``(2, elements of all inputs)`` smallest and largest value of each.
    """

    thresholds: NDArray[np.float64]
    steps: NDArray[np.int64]
    writes: NDArray[np.int64]
    openings: NDArray[np.int64]
    elements: int
    right: NDArray[np.int64]
    judged: NDArray[np.int64]
    gaps: NDArray[np.float64]
    sizes: NDArray[np.float64]
    inputs: NDArray[np.float64]

    def merged(self, other: Rolled) -> Rolled:
        """Of the episodes of both."""
        listed: dict[str, Any] = {
            name: np.concatenate((getattr(self, name), getattr(other, name)))
            for name in ("steps", "writes", "openings", "right", "judged")
        }
        lows, highs = zip(self.inputs, other.inputs, strict=True)
        return replace(
            self,
            **listed,
            gaps=self.gaps + other.gaps,
            sizes=self.sizes + other.sizes,
            inputs=np.stack((np.minimum(*lows), np.maximum(*highs))),
        )

    @property
    def output_error(self) -> NDArray[np.float64]:
        """``(lanes,)``; see `stategate.contract.CurvePoint`."""
        errors = np.sqrt(self.gaps / np.maximum(self.sizes, 1e-300)[:, None])
        return np.asarray(errors.max(axis=0, initial=0.0))


@dataclass(frozen=True, slots=True)
class Thinned:
    """Values of a gate, thinned evenly to at most ``keep`` in constant memory.

    Attributes:
        every: Of so many steps one is kept.
        kept: ``(steps kept, elements)`` float32.
    """

    every: int
    kept: NDArray[np.float32]
    keep: ClassVar[int] = 200_000

    def merged(self, other: Thinned) -> Thinned:
        """Of both, as dense as the sparser of them."""
        every = max(self.every, other.every)
        kept = [one.kept[:: every // one.every] for one in (self, other)]
        return Thinned(every, np.concatenate(kept)).fitted()

    def fitted(self) -> Thinned:
        """Thinned until it fits; ``every`` stays a power of two."""
        one = self
        while one.kept.size > self.keep:
            one = Thinned(one.every * 2, one.kept[::2])
        return one


class Lanes:
    """Steps a model in several lanes at once, each with a state and a threshold of its own.

    Args:
        model: The model.
        gate: The hard gate whose threshold the lanes choose; others keep theirs.

    Raises:
        CalibrationError: In `step`, where the model cannot be stepped that way.
    """

    def __init__(self, model: StepModel, gate: GateSpec) -> None:
        self.spec: StepSpec = model.step_spec()
        self.gate = gate
        self._model = model
        self._fixed = threshold_inputs(self.spec)
        self._others = {g: t for g, t in self.spec.thresholds.items() if g != gate.name}
        self._shared = torch.vmap(self._one, in_dims=(0, 0, None))
        self._apart = torch.vmap(self._one, in_dims=(0, 0, 0))

    def start(self, lanes: int) -> Tensors:
        """Initial states with a leading axis of lanes."""
        return {n: t.expand(lanes, *t.shape) for n, t in initial_states(self._model).items()}

    def step(
        self, thresholds: torch.Tensor, states: Tensors, inputs: Tensors, *, apart: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        """One step of every lane.

        Args:
            thresholds: ``(lanes,)``.
            states: With a leading axis of lanes.
            inputs: Of one step, the same for all lanes.
            apart: Inputs have a leading axis of lanes too.

        Returns:
            Outputs, states that the next step sees, and gate values ``(lanes, *gate)``.
        """
        try:
            return (self._apart if apart else self._shared)(thresholds, states, inputs)
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
        shown = {name: threshold[None]} if name is not None else {}
        result = self._model.step({**inputs, **self._fixed, **shown}, states)
        is_open = {g: opens(result.gates[g], t).any() for g, t in self._others.items()}
        is_open[self.gate.name] = opens(result.gates[self.gate.name], threshold).any()
        kept = {
            s.name: torch.where(is_open[s.gate], result.states[s.name], states[s.name])
            if s.gate in is_open
            else result.states[s.name]
            for s in self.spec.states
        }
        return dict(result.outputs), kept, result.gates[self.gate.name]


def hard_gate(spec: StepSpec, name: str | None = None) -> GateSpec:
    """The hard gate that is meant: the only one, or the named one.

    Raises:
        CalibrationError: There is none, or several and no name.
    """
    hard = {g.name: g for g in spec.gates if g.kind == "hard"}
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
    """Inputs ``(steps, *shape)`` of an episode that fits the model.

    Raises:
        EpisodeError: It does not fit, or holds NaN or Inf.
    """
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
) -> Rolled:
    """Roll every threshold through an episode, from the initial state.

    Args:
        model: The model.
        episode: Inputs, with or without labels.
        report: Called with the number of steps done.
        gate: Whose threshold it is.
        thresholds: What to try.
        reference: Threshold of one more lane, whose outputs the others are compared with.

    Raises:
        CalibrationError: The model cannot be stepped in lanes, or gives a gate that is not finite.
        EpisodeError: The episode does not fit the model.
    """
    lanes = Lanes(model, gate)
    tried = torch.tensor([*thresholds, reference], dtype=torch.float32)
    floats = [t.name for t in lanes.spec.outputs if t.dtype.startswith("float")]
    gap = torch.zeros(len(floats), len(tried), dtype=torch.float64)
    inputs = tensors_of(episode, lanes.spec)
    states = lanes.start(len(tried))
    writes, openings, right = torch.zeros(3, len(tried), dtype=torch.int64)
    judged = 0
    limits = tried.reshape(-1, *([1] * len(gate.shape)))
    for t in range(episode.steps):
        outputs, states, values = lanes.step(
            tried, states, {name: array[t] for name, array in inputs.items()}
        )
        _check_finite(values, gate, t)
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
        report(t + 1)
    return Rolled(
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
def gate_values(
    model: StepModel, episode: Episode, report: Report, *, gate: GateSpec, threshold: float
) -> Thinned:
    """Values of a gate's elements in closed loop.

    For a gate of step granularity only the largest element of each step counts.
    """
    lanes = Lanes(model, gate)
    tried = torch.tensor([threshold])
    inputs = tensors_of(episode, lanes.spec)
    states = lanes.start(1)
    kept: list[NDArray[np.float32]] = []
    every = 1
    for t in range(episode.steps):
        _, states, values = lanes.step(tried, states, {n: a[t] for n, a in inputs.items()})
        _check_finite(values, gate, t)
        if t % every == 0:
            flat = values.flatten()
            kept.append((flat.amax()[None] if elements_of(gate) == 1 else flat).numpy())
        if len(kept) * elements_of(gate) > Thinned.keep:
            kept, every = kept[::2], every * 2
        report(t + 1)
    return Thinned(every, np.stack(kept))


def extremes(episode: Episode) -> NDArray[np.float64]:
    """``(2, elements)``: smallest and largest value of every element of every input."""
    flat = [a.reshape(len(a), -1).astype(np.float64) for _, a in sorted(episode.inputs.items())]
    whole = np.concatenate(flat, axis=1)
    return np.stack((whole.min(axis=0), whole.max(axis=0)))


def check_changes(seen: NDArray[np.float64], steps: int) -> None:
    """Refuse recordings in which nothing happens: what they say of a gate is its start alone.

    Args:
        seen: ``(2, elements)``, see `extremes`, over all episodes.
        steps: Of all episodes.

    Raises:
        EpisodeError: No input ever changes.
    """
    if steps > 1 and (seen[0] == seen[1]).all():
        raise EpisodeError(
            "no input ever changes",
            found=f"constant numbers in all of {steps} steps",
            expected="recordings of what the model meets in use",
        )


def _check_finite(values: torch.Tensor, gate: GateSpec, t: int) -> None:
    if not values.isfinite().all():
        raise CalibrationError(
            f"gate {gate.name!r} is not finite",
            found=f"NaN or Inf in step {t}",
            remedy="look for overflow in the model; a session would refuse this step",
        )
