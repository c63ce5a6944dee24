"""Copies of a user's module: to be tried out, and to stay untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stategate.contract.errors import TraceError, UndeclaredStateError
from stategate.contract.failures import failures
from stategate.models.lifting.blame import explained


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares nothing with the module but what every copy of it shares.

    Raises:
        TraceError: It cannot be copied; the parts that stand against it are named.
    """
    try:
        return copy.deepcopy(module, _without_history(module))
    except failures() as problem:  # a user's objects may raise anything
        parts = {name: value for name, value in _parts(module) if not _has_copy(value)}
        found = ", ".join(f"{name}: {type(value).__name__}" for name, value in parts.items())
        iterators = [
            name
            for name, value in parts.items()
            if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")
        ]
        if iterators:
            raise UndeclaredStateError(
                "a generator remembers where it is, and no state can hold that",
                found=found,
                expected="everything the model remembers in tensors and numbers",
                remedy=f"compute what {iterators[0]} yields from a counter, and name that counter "
                "in the states of lift()",
            ) from problem
        raise TraceError(
            "the module cannot be copied, and is not tried out itself",
            found=found or explained(problem),
            expected="a module that copy.deepcopy can copy",
            remedy="detach() what it computed before, and make file handles and locks later",
        ) from problem


def _without_history(module: nn.Module) -> dict[int, Any]:
    """Copies of what was computed before, which deepcopy refuses: the weight of a weight norm."""
    leaves = (leaf for _, value in _parts(module) for leaf in pytree.tree_leaves(value))
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf)
    return {id(tensor): tensor.detach().clone() for tensor in tensors}


def _parts(module: nn.Module) -> Iterator[tuple[str, object]]:
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                yield f"{prefix}.{name}" if prefix else name, value
        for name, tensor in part._buffers.items():
            yield f"{prefix}.{name}" if prefix else name, tensor


def _has_copy(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except failures():
        return False
    return True
