"""What a bundle is compared with: the model as it was before export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Reference(Protocol):
    """The model as it was before export, on its own state."""

    name: str  # what it is, for the receipt

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step, and gates, by name."""
        ...
