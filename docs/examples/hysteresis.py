"""Hysteresis for a gate: once open it stays open until its value falls to a lower threshold.

For a model with one hard gate of one element, of value l, with T its threshold and C below it:

    open  <-  l > T   or   (open before and l > C)

The contract compares a gate with T alone, so what comes out is l where both agree, and otherwise
a number just above T, or T itself: the runtime decides as the model did, exactly, and T stays
data. The model inside is shown C instead of T while the gate is open. Whether it is open is a state
of one number, which no gate guards: it changes in quiet steps too.

Copy this file beside your model; it needs nothing else of stategate than what a model needs.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor, nn

from stategate.contract import GateSpec, StateSpec, StepSpec
from stategate.contract.errors import SpecError
from stategate.models.step import StepModel, StepResult, Tensors, initial_states, opens

_OPEN = "is_open"


class Hysteresis(nn.Module):
    """A step model whose gate closes later than it opens.

    A gate of several elements is refused: the model inside takes one threshold for all of them,
    and each would need its own.

    Attributes:
        family: Of the model inside.

    Args:
        model: An ``nn.Module`` with one hard gate of one element that takes its threshold as an
            input.
        close_below: C, not above the threshold at which the model opens.

    Raises:
        SpecError: The model has no such gate, or ``close_below`` lies above its threshold.
    """

    def __init__(self, model: StepModel, close_below: float) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SpecError("Hysteresis.model must be an nn.Module", found=type(model))
        self.model = model
        self.close_below = close_below
        self.family = str(getattr(model, "family", "custom"))
        self.kv_bytes_per_step = getattr(model, "kv_bytes_per_step", None)
        spec = model.step_spec()
        hard = [gate for gate in spec.gates if gate.kind == "hard"]
        if len(hard) != 1 or math.prod(hard[0].shape) != 1 or hard[0].threshold_input is None:
            raise SpecError(
                "Hysteresis needs a model with one hard gate of one element, fed its threshold",
                found="; ".join(f"{g.name} {list(g.shape)}" for g in hard) or "no hard gate",
                remedy="for a gate of heads, slots or channels raise its threshold instead",
            )
        self._gate: GateSpec = hard[0]
        self._input = hard[0].threshold_input
        threshold = hard[0].threshold
        assert threshold is not None
        if not math.isfinite(close_below) or close_below > threshold:
            raise SpecError(
                "Hysteresis.close_below must not lie above the gate's threshold",
                found=close_below,
                expected=f"a finite number up to {threshold:g}",
            )
        if _OPEN in {state.name for state in spec.states}:
            raise SpecError("Hysteresis.model has a state of this name", found=_OPEN)

    def step_spec(self) -> StepSpec:
        """The model's signature, with the state that says whether its gate is open."""
        spec = self.model.step_spec()
        states = (*spec.states, StateSpec(_OPEN, self._gate.shape, layout="1 open, 0 closed"))
        return msgspec.structs.replace(spec, states=states)

    def initial_states(self) -> dict[str, Tensor]:
        """The model's own; the gate starts closed."""
        return initial_states(self.model)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step; a closed gate gives the guarded states back, bit for bit."""
        threshold = inputs[self._input]
        was_open = states[_OPEN] > 0.5
        # Where the threshold is set below C, the gate closes where it opens.
        lower = torch.clamp(threshold, max=self.close_below)
        limit = torch.where(was_open, lower, threshold)
        own = {name: state for name, state in states.items() if name != _OPEN}
        result = self.model.step({**inputs, self._input: limit}, own)
        value = result.gates[self._gate.name]
        is_open = opens(value, limit)
        # Above T by eight units in its last place, and at zero by what no exporter takes for zero.
        above = threshold + (threshold.abs() * 2.0**-20 + 2.0**-10)
        shown = torch.where(is_open, torch.maximum(value, above), torch.minimum(value, threshold))
        return StepResult(
            result.outputs,
            {**result.states, _OPEN: is_open.to(torch.float32)},
            {**result.gates, self._gate.name: shown},
        )
