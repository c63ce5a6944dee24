"""AURA-Mem's step as a torch module with explicit states: eager, compiled, and for converters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from lab.peers.aura_numpy import LEAK, SURPRISE_FLOOR, UNIT_FLOOR
from lab.peers.base import Peer, aura_weights, fixed
from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array

# Plain numbers: a compiler guards on whatever else it finds among a module's globals.
_LEAK, _SURPRISE, _UNIT = float(LEAK), float(SURPRISE_FLOOR), float(UNIT_FLOOR)


class AuraStep(torch.nn.Module):
    """``(z, S, b) -> (action, S, b)``, without a branch, as converters want it."""

    c2: Tensor
    gate_surprise: Tensor

    def __init__(self, bundle: str) -> None:
        super().__init__()
        opened = Bundle.open(bundle)
        for name, array in aura_weights(opened).items():
            self.register_buffer(name.replace(".", "_"), torch.from_numpy(array.copy()))
        (self.threshold,) = (float(value.reshape(-1)[0]) for value in fixed(opened).values())

    def layer(self, name: str, x: Tensor) -> Tensor:
        """A linear layer by its name."""
        bias = getattr(self, f"{name}_bias", None)
        return linear(x, getattr(self, f"{name}_weight"), bias)

    def forward(self, z: Tensor, S: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(1, 64), (1, 32, 32), (1, 32)``."""
        x = silu(self.layer("encode", z))
        k, q = self.layer("to_k", x), self.layer("to_q", x)
        k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + _UNIT)
        q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + _UNIT)
        beta = torch.sigmoid(self.layer("to_beta", x)) / (1 + self.c2)
        read = torch.matmul(q.unsqueeze(1), S).squeeze(1)
        residual = self.layer("to_v", x) - torch.matmul(k.unsqueeze(1), S).squeeze(1) - b
        surprise = torch.log((residual * residual).mean(-1, keepdim=True) + _SURPRISE)
        hidden = self.layer("gate_hidden", silu(self.layer("gate_in", z)))
        hidden = hidden + self.layer("gate_residual", residual) + surprise * self.gate_surprise
        is_open = self.layer("gate_out", silu(hidden)) > self.threshold
        keep, change = 1 - _LEAK * beta, beta * residual
        o = read + b
        overlap = (k * q).sum(-1, keepdim=True)
        o = torch.where(is_open, keep * o + change * (overlap + self.c2), o)
        written = keep.unsqueeze(-1) * S + k.unsqueeze(-1) * change.unsqueeze(-2)
        action = self.layer("head_out", silu(self.layer("head_in", torch.cat((o, x), -1))))
        return (
            action,
            torch.where(is_open.unsqueeze(-1), written, S),
            torch.where(is_open, keep * b + self.c2 * change, b),
        )


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the right shapes, all zero."""
    return torch.zeros(1, 64), torch.zeros(1, 32, 32), torch.zeros(1, 32)


class AuraTorch(Peer):
    """The module, stepped without gradients on one thread."""

    def __init__(self, bundle: str, compiled: bool) -> None:
        torch.set_num_threads(1)
        module = AuraStep(bundle).eval()
        self._call: Any = torch.compile(module, fullgraph=True) if compiled else module
        self._states = example()[1:]
        self.engine = f"torch {torch.__version__} {'compile' if compiled else 'eager'}"

    @torch.inference_mode()
    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        action, *self._states = self._call(torch.from_numpy(inputs["z"]), *self._states)
        return {"action": action.numpy()}


def open_peer(bundle: str, compiled: bool = False) -> AuraTorch:
    """Eager, or through ``torch.compile``."""
    return AuraTorch(bundle, compiled)
