"""A model of which some parameters learn, and the others stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_but(module: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach some parameters of a module alone; afterwards all are as before."""
    before = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(any(parameter is one for one in trained))
        yield
    finally:
        for parameter, requires in before.items():
            parameter.requires_grad_(requires)
