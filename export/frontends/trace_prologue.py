"""A prologue of a torch module: traced like a step, and held against the module itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from stategate.contract import StepSpec, TensorSpec
from stategate.contract.errors import TraceError
from stategate.contract.failures import failures
from stategate.contract.prologue import Prologue
from stategate.export.candidate import PrologueGraph
from stategate.export.frontends.prologue import check_first_states
from stategate.export.frontends.trace import as_onnx, quiet
from stategate.export.frontends.unrolled import in_simpler_operations
from stategate.export.passes.graph import serialised, without_traces_of_the_build
from stategate.models.lifting.blame import explained

# As text, so that a wrong one is refused by `traced_prologue`, which says more.
Encoder: TypeAlias = "tuple[nn.Module, Mapping[str, Tensor]]"
"""A module that gives first states, and an example of each of its inputs, by name."""


class _Ordered(nn.Module):
    """The module with positional tensors in and out."""

    def __init__(self, module: nn.Module, names: list[str], states: list[str]) -> None:
        super().__init__()
        self.module, self._names, self._states = module, names, states

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        result = self.module(**dict(zip(self._names, tensors, strict=True)))
        if isinstance(result, Tensor):
            result = (result,)
        if isinstance(result, Mapping):
            return tuple(result[name] for name in self._states)
        return tuple(result)


def traced_prologue(encoder: object, spec: StepSpec) -> PrologueGraph:
    """The graph of a module that gives first states."""
    if not (isinstance(encoder, tuple) and len(encoder) == 2 and isinstance(encoder[0], nn.Module)):
        raise TraceError(
            "this is no prologue",
            found=type(encoder).__name__,
            expected="a module, and an example of each of its inputs",
            remedy='prologue=(encoder, {"image": torch.zeros(1, 3, 64, 64)})',
        )
    module, example = copy.deepcopy(encoder[0]).eval(), dict(encoder[1])
    try:
        with torch.no_grad():
            result = module(**{name: tensor.clone() for name, tensor in example.items()})
    except failures() as problem:  # a user's code may raise anything
        raise TraceError(
            "the prologue fails on its example",
            found=explained(problem),
            expected=f"a module that takes {', '.join(example)} by name",
        ) from problem
    results = [result] if isinstance(result, Tensor) else result
    states = list(result) if isinstance(result, Mapping) else [s.name for s in spec.states]
    states = states[: len(results)]
    inputs = tuple(
        TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in example.items()
    )
    signature = Prologue(inputs, {name: f"{name}_first" for name in states})
    signature.check(spec)
    ordered = _Ordered(module, list(example), states)

    @torch.no_grad()
    def reference(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [torch.from_numpy(np.array(feed[name])) for name in example]
        return {
            name: tensor.numpy().copy()
            for name, tensor in zip(states, ordered(*tensors), strict=True)
        }

    check_first_states(reference, signature, spec, type(module).__name__)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(ordered, tuple(example.values()), strict=False)
            outputs = list(signature.outputs.values())
            converted = as_onnx(in_simpler_operations(program), list(example), outputs)
    except failures() as problem:  # torch.export raises many unrelated types
        raise TraceError(
            "torch.export cannot follow the prologue",
            found=explained(problem, lines=1),
            expected="fixed shapes, and no branches that depend on numbers",
        ) from problem
    return PrologueGraph(signature, serialised(without_traces_of_the_build(converted)), reference)
