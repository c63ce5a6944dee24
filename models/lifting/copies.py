"""Copies of a user's module: to be tried out, and to stay untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stategate.contract.errors import TraceError, UndeclaredStateError
from stategate.contract.failures import failures
from stategate.models.lifting.blame import explained
from stategate.models.lifting.slots import attributes_of


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares nothing with the module but what every copy of it shares."""
    attributes = list(attributes_of(module))
    # What was computed before is refused by deepcopy: the weight of a weight norm, for one.
    computed = [
        leaf
        for _, value in attributes
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor) and not leaf.is_leaf
    ]
    try:
        return copy.deepcopy(module, {id(leaf): leaf.detach().clone() for leaf in computed})
    except failures() as problem:  # a user's objects may raise anything
        parts = {name: value for name, value in attributes if not _has_copy(value)}
        names = ", ".join(f"{name}: {type(value).__name__}" for name, value in parts.items())
        generators = [
            name
            for name, value in parts.items()
            if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")
        ]
        if generators:
            raise UndeclaredStateError(
                "a generator remembers where it is, and no state can hold that",
                found=names,
                expected="everything the model remembers in tensors and numbers",
                remedy=f"compute what {generators[0]} yields from a counter, and name that counter "
                "in the states of lift()",
            ) from problem
        raise TraceError(
            "the module cannot be copied, and stategate tries out copies alone",
            found=names or explained(problem),
            expected="a module that copy.deepcopy can copy",
            remedy="detach() what it computed before, and make file handles and locks later",
        ) from problem


def _has_copy(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except failures():
        return False
    return True
