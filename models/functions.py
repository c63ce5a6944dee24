"""Functions that every engine must compute alike, because gates are compared with them."""

from __future__ import annotations

import torch
from torch import Tensor


def share(a: Tensor) -> Tensor:
    """The logistic function with a small relative error where it is small, and never zero.

    ONNX Runtime's Sigmoid is 17 % off at -15 and exactly zero from -18 on: a saturated gate would
    then be closed at a threshold of zero there, and open in torch.
    """
    return torch.reciprocal(1.0 + torch.exp(-a.clamp(min=-80.0)))
