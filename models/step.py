"""The step protocol: what a torch module must offer to become a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from stategate.contract import StepSpec
from stategate.contract.errors import TraceError

Tensors = Mapping[str, torch.Tensor]


class StepResult(NamedTuple):
    """What one step gives, each by its contract name."""

    outputs: Tensors  # by output name
    states: Tensors  # next states, by *state* name (not by ``next_name``)
    gates: Tensors  # by gate name; empty for models without gates


@runtime_checkable
class StepModel(Protocol):
    """An ``nn.Module`` whose memory is in its arguments.

    A model may also define ``initial_states() -> Mapping[str, Tensor]`` for states that do not
    start at zero, and ``observes``, a `stategate.contract.ObservationContract`, for what its inputs
    and outputs mean.
    """

    def step_spec(self) -> StepSpec:
        """Names, shapes and dtypes of everything that goes in, out and along."""
        ...

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step, without side effects.

        For ``stategate export --sessions`` it is also called with more rows than one: every leading
        axis of 1 in the spec is then the number of sessions, and no row may depend on another.

        Args:
            inputs: By name, of the shapes in the spec; the threshold inputs of hard gates are
                among them, each ``(1,)`` float32.
            states: By state name, of the shapes in the spec.
        """
        ...


class ChunkModel(StepModel, Protocol):
    """A step model that can also take several steps at once, for recorded history."""

    chunk_steps: int  # how many; 0 where this one cannot after all

    def chunk(self, inputs: Tensors, states: Tensors, valid: torch.Tensor) -> StepResult:
        """Several steps, with the results that as many calls of ``step`` would have.

        Args:
            inputs: As for ``step``, with a time axis of ``chunk_steps`` behind the leading one;
                thresholds have none.
            states: As for ``step``.
            valid: ``(rows, chunk_steps)`` bool, true up to the last step that is meant; outputs
                and gates of the others are not looked at.
        """
        ...


def initial_states(model: StepModel, sessions: int = 1) -> dict[str, torch.Tensor]:
    """The states before the first step: the model's own, or zeros where it names none.

    Args:
        model: The model.
        sessions: How many rows of them, all alike.
    """
    named = dict(getattr(model, "initial_states", dict)())
    states = {}
    for spec in model.step_spec().states:
        start = named.pop(spec.name, None)
        if start is None:
            start = torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        dtype = str(getattr(start, "dtype", type(start).__name__)).removeprefix("torch.")
        fits = dtype == spec.dtype and tuple(start.shape) == spec.shape
        if not fits or not start.isfinite().all():
            raise TraceError(
                f"the state {spec.name!r} must not start with this value",
                found=f"{dtype} {tuple(getattr(start, 'shape', ()))}{', not finite' * fits}",
                expected=f"a finite {spec.dtype} tensor of {spec.shape}",
                remedy="start a largest or smallest value from the last finite number, such as "
                f"-torch.finfo(torch.{dtype}).max, and what has no value yet from None"
                if fits
                else None,
            )
        rows = [start.detach()] * sessions
        states[spec.name] = torch.cat(rows) if sessions > 1 else rows[0].clone()
    if named:
        raise TraceError(
            "initial_states() names states that step_spec() does not declare",
            found=", ".join(named),
            expected=", ".join(states),
        )
    return states


def threshold_inputs(
    spec: StepSpec, thresholds: Mapping[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """The threshold tensors that the runtime would feed, by input name.

    Args:
        spec: The model's signature.
        thresholds: Values by gate name that replace those of the spec.
    """
    chosen = thresholds or {}
    return {
        gate.threshold_input: torch.tensor([chosen.get(gate.name, gate.threshold)])
        for gate in spec.gates
        if gate.threshold_input is not None
    }


def opens(gate: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """Which elements of a hard gate are open; see `stategate.contract.write_rule`."""
    return gate > threshold


def commit(
    spec: StepSpec,
    states: Tensors,
    result: StepResult,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """Apply the write rule: the states that the next step sees.

    A state guarded by a hard gate keeps its old tensor unless some element of the gate is above
    the threshold; any other state takes its next value.
    """
    chosen = thresholds or {}
    closed = {
        gate.name
        for gate in spec.gates
        if gate.threshold is not None
        and not bool(opens(result.gates[gate.name], chosen.get(gate.name, gate.threshold)).any())
    }
    return {s.name: (states if s.gate in closed else result.states)[s.name] for s in spec.states}
