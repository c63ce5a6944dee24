"""The error for a memory that nobody declared, with what mends it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stategate.contract.errors import UndeclaredStateError
from stategate.export.memory.moments import root
from stategate.models.lifting.lift import Lifted
from stategate.models.lifting.slots import GROWING

RANDOM = "random numbers"


def undeclared(
    model: nn.Module,
    names: Sequence[str],
    *,
    value: object = None,
    grown: bool = False,
    outside: bool = False,
) -> UndeclaredStateError:
    """The error for values that change in a step and are no states.

    ``value`` is what the first of them holds, ``grown`` whether it becomes larger with every step,
    ``outside`` whether it lies where no state can be declared, such as a closure.
    """
    lifted = isinstance(model, Lifted)
    where = "states of lift()" if lifted else "step_spec().states"
    short = "".join(c for c in names[0].rsplit(".", 1)[-1] if c.isalnum() or c == "_")
    if grown:
        remedy = GROWING
    elif names[0] == RANDOM:
        remedy = "hand them over as an input, such as forward(x, noise), or leave them out"
    elif outside:
        remedy = "keep it in a buffer of the module, and declare that: no state can be kept there"
    elif isinstance(model, Lifted):
        states = dict.fromkeys([*model.attributes, *map(root, names)])
        remedy = f"lift(..., states={list(states)}), also for what only the first call sets"
    else:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else "(1,)"
        remedy = (
            f'add StateSpec("{short}", {shape}) to the states of step_spec(), read '
            f'states["{short}"] instead of self.{names[0]}, and return the new value under '
            f'"{short}" in StepResult.states'
        )
    return UndeclaredStateError(
        "the step changes values that are not declared as states",
        found=", ".join(names[:8]),
        expected=f"everything the model remembers in {where}",
        remedy=remedy,
    )
