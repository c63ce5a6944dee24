"""Four layers of Gated DeltaNet-2, 512 wide, with four heads of 128 x 128: weights from a seed.

A model of `make bench-native`: 7.9 million parameters, so large that reading them is what a step
costs. `stategate export docs/examples/stack.py:stack --out build/stack`
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.zoo.makers import GDN2


def stack() -> Stack:
    """The model; a file of one's own would load trained weights here."""
    torch.manual_seed(0)
    layer = replace(GDN2, width=512, heads=4, value_heads=4, key_dim=128, value_dim=128)
    return Stack(StackConfig(512, 512, 4, None, layer)).eval()
