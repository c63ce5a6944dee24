"""How far a bundle may part from its model, by the numbers that the model computes with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from stategate.contract import Episode, StepSpec
from stategate.export.candidate import Arrays, Candidate
from stategate.export.frontends.trace import as_module
from stategate.export.seal.verify import STRICT, TOLERANCE, Gaps, Limits
from stategate.models.step import StepModel, Tensors, commit, initial_states, threshold_inputs

_HALVES = {torch.float16, torch.bfloat16}
# Some twenty roundings of float16. Memory that is forgotten shows as more than this.
_CEILING = 0.02
# The bundle rounds in other places than the model, and in a long loop chance decides how far.
_SPREAD = 4
# As many roundings of float64 as the usual tolerance is of float32.
_FLOAT64 = TOLERANCE * float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)


def strict_limits(model: StepModel, candidate: Candidate, episode: Episode) -> Limits:
    """The limits of a bundle that computes in the numbers of its model.

    float32 has the usual tolerance, and float64 as many roundings of its own. float16 rounds so
    coarsely that the model itself has to say how much that does: it is run beside a copy in
    float32, and the bundle may be a few times as far away.
    """
    kinds = _types_in(model, episode)
    if kinds & _HALVES:
        own = own_rounding(model, candidate.spec.thresholds, episode)
        name = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds & _HALVES))
        why = f"the model computes in {name} and is {own:.2g} away from a copy of it in float32"
        return Limits(min(max(TOLERANCE, _SPREAD * own), _CEILING), because=why)
    if kinds == {torch.float64}:
        return Limits(_FLOAT64, because="the model computes in float64 alone")
    return STRICT


@torch.no_grad()
def own_rounding(model: StepModel, thresholds: dict[str, float], episode: Episode) -> float:
    """Largest error of outputs and states that a model has because it computes in float16.

    Returns:
        In units of the largest magnitude of each tensor, see `Gaps`; infinity where the two part
        for ever. Outputs that are no floating-point numbers are not compared.
    """
    spec = model.step_spec()
    fixed = threshold_inputs(spec, thresholds)
    with warnings.catch_warnings():  # of torch, about its own pytrees
        warnings.simplefilter("ignore", FutureWarning)
        twin: Any = copy.deepcopy(as_module(model)).float()
    states: Tensors = initial_states(model)
    wide: Tensors = _widened(states)
    gaps = Gaps()
    for arrays in episode:
        feed = _first_row(spec, arrays)
        result = model.step({**feed, **fixed}, states)
        with _InFloat32():  # type: ignore[no-untyped-call]
            exact = twin.step({**_widened(feed), **fixed}, wide)
        states = commit(spec, states, result, thresholds)
        wide = commit(spec, wide, exact, thresholds)
        gaps.add(_arrays(spec, exact.outputs, wide), _arrays(spec, result.outputs, states))
    return gaps.worst()


def _types_in(model: StepModel, episode: Episode) -> set[torch.dtype]:
    """Types of all floating-point tensors that one step computes with."""
    spec = model.step_spec()
    feed = _first_row(spec, next(iter(episode)))
    with torch.no_grad(), _Types() as mode:
        model.step({**feed, **threshold_inputs(spec)}, initial_states(model))
    types: set[torch.dtype] = mode.types
    return types


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the types of floating-point tensors that operations take and give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.types.add(leaf.dtype)
        return result


class _InFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Widens what a module narrows by itself, in casts of its own or by autocast."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_wide, (args, kwargs or {}))
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _HALVES else value
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value


def _widened(tensors: Tensors) -> dict[str, Tensor]:
    return {name: _wide(tensor) for name, tensor in tensors.items()}


def _first_row(spec: StepSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Inputs of one session, of as many as there may be."""
    one = {t.name: inputs[t.name][: t.shape[0]] if t.shape else inputs[t.name] for t in spec.inputs}
    return {name: torch.from_numpy(np.array(array)) for name, array in one.items()}


def _arrays(spec: StepSpec, outputs: Tensors, states: Tensors) -> Arrays:
    """The floating-point numbers among them, which have to be compared in one type."""
    named = {f"output {t.name}": outputs[t.name] for t in spec.outputs}
    named |= {f"state {s.name}": states[s.name] for s in spec.states}
    floats = {name: t for name, t in named.items() if t.is_floating_point()}
    return {name: tensor.double().numpy() for name, tensor in floats.items()}
