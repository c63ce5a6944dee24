"""Functions that every engine must compute alike, because gates are compared with them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu


def share(a: Tensor) -> Tensor:
    """The logistic function with a small relative error where it is small, and never zero.

    ONNX Runtime's Sigmoid is 17 % off at -15 and exactly zero from -18 on: a saturated gate would
    then be closed at a threshold of zero there, and open in torch.
    """
    return torch.reciprocal(1.0 + torch.exp(-a.clamp(min=-80.0)))


def log_sigmoid(x: Tensor) -> Tensor:
    """logsigmoid(x) to 1e-6 of itself, in any engine.

    Log(Sigmoid(x)) is 0 from x = 17 on in float32, and then all tokens tie; Softplus is as bad
    where an engine computes it as log(1 + exp). Here log(1 + e) is a series for small e.
    """
    e = torch.exp(-x.abs())
    series = e * (1 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e / 6)))))
    return -(relu(-x) + torch.where(e < 0.1, series, torch.log(1 + e)))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, with 1e-6 under the root as published."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
