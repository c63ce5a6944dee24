"""The threshold of a hard gate, from the model's own closed loop.

A gate decides on what earlier decisions left in memory, so every threshold is tried in a loop of
its own; rescoring one recorded loop would judge decisions that were never lived with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stategate.contract import CurvePoint, Episode, GateCalibration, GateSpec, StepSpec
from stategate.contract.errors import CalibrationError
from stategate.models.step import StepModel, Tensors, initial_states, threshold_inputs

TOLERANCE = 0.0005


@torch.no_grad()
def calibrate_gate(
    model: StepModel,
    episode: Episode,
    thresholds: Sequence[float],
    tolerance: float = TOLERANCE,
    report: Callable[[int], None] = lambda _: None,
) -> GateCalibration:
    """Choose the threshold with the fewest writes among those that cost no accuracy.

    Args:
        model: With one hard gate.
        episode: Held-out inputs with labels of one output.
        thresholds: What to try.
        tolerance: Accuracy that may be given up against the best of them.
        report: Called with the number of steps done.

    Raises:
        CalibrationError: The model has no such gate, or the episode no labels.
        EpisodeError: The episode does not fit the model.
    """
    spec = model.step_spec()
    gate = hard_gate(spec)
    episode.check(spec)
    if not any((labels >= 0).any() for labels in episode.labels.values()):
        raise CalibrationError(
            "the episode has no labels to judge by",
            expected="label.<output> with at least one index >= 0",
        )
    if not thresholds:
        raise CalibrationError("no thresholds to try were given")
    curve = _curve(model, gate, episode, sorted(set(thresholds)), report)
    best = max(point.accuracy for point in curve)
    chosen = min(
        (point for point in curve if point.accuracy >= best - tolerance),
        key=lambda point: (point.write_rate, -point.threshold),
    )
    rule = f"fewest writes within {tolerance:g} of the best accuracy ({best:.4f})"
    return GateCalibration(gate.name, chosen.threshold, chosen.write_rate, rule, tuple(curve))


def hard_gate(spec: StepSpec) -> GateSpec:
    """The gate whose threshold can be chosen.

    Raises:
        CalibrationError: There is none, or more than one.
    """
    hard = [gate for gate in spec.gates if gate.kind == "hard"]
    if len(hard) != 1:
        raise CalibrationError(
            "the threshold cannot be chosen for this model",
            found=f"{len(hard)} hard gates",
            expected="one",
            remedy=None
            if hard
            else "export it without: a model without a hard gate, such as a lifted module, writes "
            "in every step and has no threshold",
        )
    return hard[0]


def _curve(
    model: StepModel,
    gate: GateSpec,
    episode: Episode,
    thresholds: Sequence[float],
    report: Callable[[int], None],
) -> list[CurvePoint]:
    """Roll all thresholds side by side, each on its own state, in one vectorised step."""
    spec = model.step_spec()
    count = len(thresholds)
    others = {g.name for g in spec.gates} - {gate.name}
    tried = torch.tensor(thresholds)
    fixed = threshold_inputs(spec)
    name = gate.threshold_input

    def one(
        threshold: torch.Tensor, states: Tensors, inputs: Tensors
    ) -> tuple[dict[str, torch.Tensor], ...]:
        shown = {name: threshold[None]} if name is not None else {}
        result = model.step({**inputs, **fixed, **shown}, states)
        is_open = (result.gates[gate.name] > threshold).any()
        kept = {
            s.name: torch.where(is_open, result.states[s.name], states[s.name])
            if s.gate == gate.name
            else result.states[s.name]
            for s in spec.states
        }
        return dict(result.outputs), kept, {gate.name: is_open}

    if any(s.gate in others for s in spec.states):
        raise CalibrationError("states guarded by a second gate cannot be calibrated yet")
    step = torch.vmap(one, in_dims=(0, 0, None))
    states = {n: t.expand(count, *t.shape) for n, t in initial_states(model).items()}
    right = torch.zeros(count, dtype=torch.int64)
    writes = torch.zeros(count, dtype=torch.int64)
    judged = 0
    for t, inputs in enumerate(episode):
        tensors = {n: torch.from_numpy(array) for n, array in inputs.items()}
        try:
            outputs, states, opened = step(tried, states, tensors)
        except RuntimeError as problem:
            raise CalibrationError(
                "the step cannot be run for several thresholds at once",
                found=str(problem).splitlines()[0],
                expected="a step that torch.vmap can map: no data-dependent Python, no .item()",
            ) from problem
        writes += opened[gate.name]
        for output, labels in episode.labels.items():
            if labels[t] >= 0:
                judged += 1
                right += outputs[output].flatten(1).argmax(1) == int(labels[t])
        report(t + 1)
    return [
        CurvePoint(value, int(writes[i]) / episode.steps, int(right[i]) / judged)
        for i, value in enumerate(thresholds)
    ]
