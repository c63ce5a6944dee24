"""What a lifted module is compared with: itself, on a memory that nobody touches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from stategate.models.lifting import Lifted

Arrays = dict[str, np.ndarray]


class StatefulReference:
    """A copy of the user's module, called as it is meant to be, one step after the other.

    It shares nothing with the wrapper that was traced but the names: memory that the wrapper
    misses, such as two names of one tensor or a flag of the first call, parts the two.

    Args:
        model: The lifted module.
    """

    def __init__(self, model: Lifted) -> None:
        self.name = f"{type(model.lifted).__name__} alone, torch {torch.__version__}"
        self._alone = model.alone()

    def step(self, inputs: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, of which there are none, by name."""
        given = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        outputs, states = self._alone.step(given)
        return _copies(outputs), _copies(states), {}


def _copies(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # The module may write them in place in the next step.
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
