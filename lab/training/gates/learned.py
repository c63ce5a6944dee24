"""A gate of its own for a model whose memory was never trained to be written rarely.

Wraps any step model, which stays as it is. With z the observation, s the values of the model's own
gates and both standardised,

    l = w2 . silu(W1 [z, s / (1 + |s|)] + b1) + b2,   open iff l > threshold

decides over the whole memory: an open step is the model's with all of its writes, a quiet step the
model's with none of them. Both are computed and one is taken, so that the gate may see what the
model's own gates say of this step (for a delta stack that skips by ``update``, the error that
skipping makes); engines share what the two have in common.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.contract import GateSpec, StateSpec, StepSpec
from stategate.contract.errors import SpecError
from stategate.models.step import StepModel, StepResult, Tensors, initial_states
from stategate.models.weights import load_part, save_part, weights_sha256

_GATE, _THRESHOLD = "open", "threshold"
_ALWAYS, _NEVER = -3.0e38, 3.0e38  # below and above every gate value
_OPEN_AT_FIRST = 2.0  # a closed gate learns nothing


class Lives(NamedTuple):
    """One step both ways."""

    opened: StepResult  # with every write of the model
    closed: StepResult  # with none of them
    logit: Tensor  # ``(rows, 1)``, what the gate thinks


class LearnedGate(nn.Module):
    """A step model around another, with one hard gate over the whole memory.

    States that the model changes in every step, though it has hard gates, go on doing so. Where
    the model takes no threshold, a quiet step's outputs are those of the model's step, of which
    nothing is remembered.

    Attributes:
        family: Of the model inside.

    Args:
        model: An ``nn.Module``; every axis that its spec leads with is 1.
        hidden: Width of the gate.
        threshold: Of the gate's logit; 0 opens where a write is more likely worth it than not.

    Raises:
        SpecError: The model has no input that the gate could see, or uses its names.
    """

    def __init__(self, model: StepModel, hidden: int = 32, threshold: float = 0.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise SpecError("LearnedGate.model must be an nn.Module", found=type(model))
        self.model = model
        self.threshold = threshold
        self.family = str(getattr(model, "family", "custom"))
        self.kv_bytes_per_step = getattr(model, "kv_bytes_per_step", None)
        spec = model.step_spec()
        self._floats = [t.name for t in spec.inputs if t.dtype.startswith("float")]
        hard = [g for g in spec.gates if g.kind == "hard"]
        self._inner_thresholds = [g.threshold_input for g in hard if g.threshold_input is not None]
        self._inner_gates = [g.name for g in spec.gates]
        guards = {g.name for g in hard}
        self._guarded = {s.name for s in spec.states if s.gate in guards or not guards}
        self._check(spec)
        width = sum(math.prod(t.shape) for t in spec.inputs if t.name in self._floats)
        width += sum(math.prod(g.shape) for g in spec.gates)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.mean: Tensor
        self.scale: Tensor
        self.gate_in = nn.Linear(width, hidden)
        self.gate_out = nn.Linear(hidden, 1)
        nn.init.constant_(self.gate_out.bias, _OPEN_AT_FIRST)

    def _check(self, spec: StepSpec) -> None:
        names = [t.name for t in (*spec.inputs, *spec.outputs)] + [s.name for s in spec.states]
        both = sorted({*names} & {_GATE, _THRESHOLD})
        if both:
            raise SpecError(
                "LearnedGate.model uses a name that the gate needs", found=", ".join(both)
            )
        other = {t.name: t.dtype for t in (*spec.inputs, *spec.outputs)}
        other |= {s.name: s.dtype for s in spec.states}
        other = {n: d for n, d in other.items() if d in ("float16", "float64")}
        if other:
            raise SpecError(
                "LearnedGate.model computes in other numbers than the gate learns in",
                found=", ".join(f"{name} in {dtype}" for name, dtype in other.items()),
                expected="float32",
                remedy="module.float(), with inputs and first values in float32",
            )
        if not self._floats:
            raise SpecError(
                "LearnedGate.model has no float input for the gate to look at",
                found=", ".join(t.dtype for t in spec.inputs),
            )
        shapes = {t.name: t.shape for t in spec.inputs} | {g.name: g.shape for g in spec.gates}
        flat = [name for name, shape in shapes.items() if shape[:1] != (1,)]
        if flat:
            raise SpecError(
                "LearnedGate.model has tensors without a leading axis of 1", found=", ".join(flat)
            )

    def step_spec(self) -> StepSpec:
        """The model's signature, with this gate in place of its own."""
        spec = self.model.step_spec()
        elements = {g.name: math.prod(g.shape) for g in spec.gates}

        def guarded(state: StateSpec) -> StateSpec:
            written = min(state.bytes, state.write_bytes * elements.get(state.gate or "", 1))
            return msgspec.structs.replace(state, gate=_GATE, write_bytes=written)

        return StepSpec(
            spec.inputs,
            spec.outputs,
            tuple(guarded(s) if s.name in self._guarded else s for s in spec.states),
            (GateSpec(_GATE, "hard", (1, 1), self.threshold, _THRESHOLD),),
            spec.constants,
        )

    def initial_states(self) -> dict[str, Tensor]:
        """The model's own."""
        return initial_states(self.model)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step; a closed gate gives the guarded states back, bit for bit."""
        opened, closed, logit = self.lives(inputs, states)
        is_open = logit > inputs[_THRESHOLD]
        return StepResult(
            {n: chosen(is_open, opened.outputs[n], closed.outputs[n]) for n in opened.outputs},
            {n: chosen(is_open, opened.states[n], closed.states[n]) for n in opened.states},
            {_GATE: logit},
        )

    def lives(self, inputs: Tensors, states: Tensors) -> Lives:
        """The step both ways, and the gate's logit, which gradients reach."""
        own = {name: value for name, value in inputs.items() if name != _THRESHOLD}
        # Both lives are computed, since the gate looks at what a write would do.
        opened = self.always(own, states)
        closed = self._inner(own, states, _NEVER) if self._inner_thresholds else opened
        quiet = {n: states[n] if n in self._guarded else closed.states[n] for n in closed.states}
        parts = [own[name].flatten(1) for name in self._floats]
        # The gate sees what an observation does and is not trained through it: first-order utility.
        inner = [opened.gates[name].detach().flatten(1) for name in self._inner_gates]
        parts += [values / (1.0 + values.abs()) for values in inner]
        features = (torch.cat(parts, dim=-1) - self.mean) / self.scale
        logit = self.gate_out(silu(self.gate_in(features)))
        return Lives(opened, closed._replace(states=quiet), logit)

    def always(self, inputs: Tensors, states: Tensors) -> StepResult:
        """The step of the model inside with every write: what a gate has to live up to."""
        return self._inner(inputs, states, _ALWAYS)

    def _inner(self, inputs: Tensors, states: Tensors, threshold: float) -> StepResult:
        shown = {name: torch.full((1,), threshold) for name in self._inner_thresholds}
        return self.model.step({**inputs, **shown}, states)

    def gate_parameters(self) -> list[nn.Parameter]:
        """What training may change."""
        return [*self.gate_in.parameters(), *self.gate_out.parameters()]

    def save_gate(self, path: Path) -> None:
        """Write the gate alone, bound to the weights inside by their digest."""
        tensors = {n: t for n, t in self.state_dict().items() if _is_gate(n)}
        assert isinstance(self.model, nn.Module)
        save_part(path, tensors, weights_sha256(self.model))

    def load_gate(self, path: str | Path) -> LearnedGate:
        """Take a saved gate; gives itself back, for a factory of one line."""
        assert isinstance(self.model, nn.Module)
        tensors = load_part(path, weights_sha256(self.model))
        hidden = len(tensors["gate_in.weight"])
        if hidden != self.gate_in.out_features:
            self.gate_in = nn.Linear(self.gate_in.in_features, hidden)
            self.gate_out = nn.Linear(hidden, 1)
        self.load_state_dict(tensors, strict=False)
        return self.eval()


def _is_gate(name: str) -> bool:
    return name.split(".")[0] in ("mean", "scale", "gate_in", "gate_out")


def chosen(is_open: Tensor, opened: Tensor, closed: Tensor) -> Tensor:
    """One of two tensors, by the row: ``is_open`` is ``(rows, 1)``."""
    rows = is_open.reshape(-1, *([1] * (opened.ndim - 1))) if opened.ndim else is_open.reshape(())
    return torch.where(rows, opened, closed)
