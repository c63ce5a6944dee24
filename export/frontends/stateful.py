"""What a lifted module is compared with: itself, on a memory that nobody touches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from stategate.models.lifting.lift import Lifted
from stategate.models.lifting.slots import value_at

Arrays = dict[str, np.ndarray]


class StatefulReference:
    """A copy of the user's module, called as it is meant to be, one step after the other.

    It starts as the module itself starts and shares nothing with the wrapper that was traced but
    the names: memory that the wrapper misses, such as two names of one tensor or a flag of the
    first call, parts the two.

    Args:
        model: The lifted module.
    """

    def __init__(self, model: Lifted) -> None:
        self.name = f"{type(model.lifted).__name__} alone, torch {torch.__version__}"
        self._model, self._module = model, model.untouched()
        self._first = model.initial_states()
        self._held = {slot.name: slot.own_start(self._first) for slot in model.arguments}

    @torch.no_grad()
    def step(self, inputs: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, of which there are none, by name."""
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        result = self._module(**tensors, **self._model.hidden_arguments(self._held))
        outputs, self._held = self._model.split(result)
        # Ones that nothing below replaces belong to the state that says there was a first step.
        states = {name: torch.ones_like(tensor) for name, tensor in self._first.items()}
        for slot in self._model.states:
            states |= slot.unpacked(value_at(self._module, slot.name), self._first)
        for slot in self._model.arguments:
            states |= slot.unpacked(self._held[slot.name], self._first)
        return _copies(outputs), _copies(states), {}


def _copies(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # The module may write them in place in the next step.
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
