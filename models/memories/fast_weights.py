"""Memories that learn in each step: TTT-linear, and Titans with a linear memory.

Both do one step of gradient descent on how well the memory gives the value back for the key.

TTT-linear (arXiv:2407.04620), one token a mini-batch, with LN a layer norm with weights:

    loss    |LN(k W + b) - (v - k)|^2 / 2         u = -eta * its gradient by k W + b
    write   W <- W + k^T u,  b <- b + u           gate: the norm of [k, 1]^T u
    read    z = q W + b after the write,  o = z + LN(z)

Titans (arXiv:2501.00663) with a matrix as its memory has momentum P, forgetting alpha, and a
surprise that fades by mu; theta is the rate:

    u = theta (v - k M)                           what surprises now; gate: the norm of k^T u
    P <- mu P + k^T u,  M <- alpha M + P,  o = q M

Between writes M and P only mix by three numbers of a head: M is alpha-weighted a M + b P, P is c P.
These are carried in ``mix`` and folded into reads, so that a step without surprise keeps every
byte of M and P although forgetting and momentum go on exactly. At a write they are applied and
start again from 1, 0, 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stategate.contract import StateSpec
from stategate.models.functions import share, unit
from stategate.models.memories.matrix import Ring, Waiting, matrix_of, norm_of
from stategate.models.memories.stack import LayerConfig, StackConfig, States, Stepped
from stategate.models.step import opens


@dataclass(frozen=True, slots=True)
class _Config(LayerConfig):
    """A layer of learning heads.

    Attributes:
        width: Features of the layer's input and output.
        heads: How many.
        head_dim: Width of keys, queries and values.
        norm_eps: Of every norm, that of the loss included.
    """

    width: int
    heads: int
    head_dim: int
    norm_eps: float

    @property
    def kv_bytes_per_step(self) -> int:
        """Of a float32 cache of one key and one value of each head."""
        return 8 * self.heads * self.head_dim


class TttConfig(_Config):
    """TTT-linear."""

    __slots__ = ()
    kind: ClassVar[str] = "ttt_linear"

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Matrix and bias."""
        n, d = self.heads, self.head_dim
        return (
            StateSpec(f"{prefix}W", (1, n, d, d), gate="write", layout="head, key, value"),
            StateSpec(f"{prefix}b", (1, n, d), gate="write", layout="head, value"),
        )

    def ring(self, prefix: str = "") -> Ring:
        """One for both: the bias is a row of the matrix whose key never changes."""
        d = self.head_dim
        return Ring(f"{prefix}ring", self.heads, 1, d, {f"{prefix}W": d, f"{prefix}b": 1})

    def build(self) -> nn.Module:
        """The layer."""
        return TttLayer(self, rates=1)


class TitansConfig(_Config):
    """Titans with a matrix as its memory."""

    __slots__ = ()
    kind: ClassVar[str] = "titans"

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Memory, momentum, and how they have mixed since the last write."""
        n, d = self.heads, self.head_dim
        matrix = {"shape": (1, n, d, d), "gate": "write", "layout": "head, key, value"}
        return (
            StateSpec(f"{prefix}M", **matrix),  # type: ignore[arg-type]
            StateSpec(f"{prefix}P", **matrix),  # type: ignore[arg-type]
            StateSpec(f"{prefix}mix", (1, n, 3), layout="head, M of M, P of M, P of P"),
        )

    def build(self) -> nn.Module:
        """The layer."""
        return TitansLayer(self, rates=3)


class _Layer(nn.Module):
    """Projections into the heads and back; queries and keys have unit length."""

    def __init__(self, config: _Config, rates: int) -> None:
        super().__init__()
        self.config = c = config
        self.to_qkv = nn.Linear(c.width, 3 * c.heads * c.head_dim, bias=False)
        self.to_rates = nn.Linear(c.width, rates * c.heads)
        self.norm = nn.Parameter(torch.ones(c.heads, c.head_dim))
        self.shift = nn.Parameter(torch.zeros(c.heads, c.head_dim))
        self.out_norm = nn.RMSNorm(c.head_dim, eps=c.norm_eps)
        self.to_out = nn.Linear(c.heads * c.head_dim, c.width, bias=False)

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token ``(rows, width)``: output, next states, gate ``(rows, heads)``."""
        q, k, v = self.to_qkv(x).reshape(len(x), 3, self.config.heads, -1).unbind(1)
        rates = share(self.to_rates(x)).reshape(len(x), -1, self.config.heads, 1)
        o, after, gate = self.recur(unit(q), unit(k), v, rates, states, threshold)
        return self.to_out(self.out_norm(o).flatten(-2)), after, gate

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, states: States, threshold: Tensor
    ) -> Stepped:
        """What the heads do.

        Args:
            q: ``(rows, heads, head_dim)``; scaled here.
            k: Likewise.
            v: Likewise.
            rates: ``(rows, rates, heads, 1)``.
            states: Of the layer.
            threshold: ``(1,)``.
        """
        raise NotImplementedError


class TttLayer(_Layer):
    """See the module; where the memory starts is learned, as published."""

    def __init__(self, config: _Config, rates: int) -> None:
        super().__init__(config, rates)
        size = (config.heads, config.head_dim)
        self.W = nn.Parameter(torch.randn(*size, config.head_dim) * 0.02)
        self.b = nn.Parameter(torch.zeros(size))

    def initial_states(self) -> dict[str, Tensor]:
        """Before the first token."""
        return {"W": self.W.unsqueeze(0), "b": self.b.unsqueeze(0)}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, states: States, threshold: Tensor
    ) -> Stepped:
        """The only rate is eta, of ``head_dim``."""
        W, b = states
        q, eta = q * q.shape[-1] ** -0.5, rates[:, 0] / q.shape[-1]
        ones = torch.ones_like(eta)  # nothing decays, and the bias has the key 1
        bias = b.read(ones.unsqueeze(-2), ones).squeeze(-2) if isinstance(b, Waiting) else b
        matrix = matrix_of(W)
        keyed, read = matrix.read(torch.stack((k, q), dim=-2), ones).unbind(-2)
        hat, deviation = self._standard(keyed + bias)
        grad = self.norm * (self.norm * hat + self.shift - (v - k))
        grad = grad - grad.mean(-1, keepdim=True) - hat * (grad * hat).mean(-1, keepdim=True)
        u = -eta * grad / deviation
        keys = torch.cat((k, ones), dim=-1)
        gate = norm_of(keys.unsqueeze(-2), u.unsqueeze(-2))
        is_open = opens(gate, threshold).unsqueeze(-1)
        own = ((q * k).sum(-1, keepdim=True) + 1.0) * u
        z = read + bias + torch.where(is_open, own, 0.0)
        after = matrix.after(ones, k, u, is_open)
        b = (
            b.after(ones, ones, u, is_open)
            if isinstance(b, Waiting)
            else torch.where(is_open, b + u, b)
        )
        return z + self.norm * self._standard(z)[0] + self.shift, (after, b), gate

    def _standard(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt((x * x).mean(-1, keepdim=True) + self.config.norm_eps)
        return x / deviation, deviation


class TitansLayer(_Layer):
    """See the module."""

    def initial_states(self) -> dict[str, Tensor]:
        """Nothing has mixed yet."""
        return {"mix": torch.tensor([1.0, 0.0, 1.0]).expand(1, self.config.heads, 3).clone()}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, states: States, threshold: Tensor
    ) -> Stepped:
        """Rates are theta, mu and alpha."""
        M, P, mix = states
        q, (theta, mu, alpha) = q * q.shape[-1] ** -0.5, rates.unbind(1)
        a, b, c = mix.split(1, dim=-1)
        queries = torch.stack((k, q), dim=-2)
        of_M, of_P = torch.matmul(queries, M), torch.matmul(queries, P)
        u = theta * (v - a * of_M[..., 0, :] - b * of_P[..., 0, :])
        gate = norm_of(k.unsqueeze(-2), u.unsqueeze(-2))
        is_open = opens(gate, threshold).unsqueeze(-1)
        a, b, c = alpha * a, alpha * b + mu * c, mu * c
        own = torch.where(is_open, (q * k).sum(-1, keepdim=True) * u, 0.0)
        o = a * of_M[..., 1, :] + b * of_P[..., 1, :] + own
        added = k.unsqueeze(-1) * u.unsqueeze(-2)
        wide, (d, e, f) = is_open.unsqueeze(-1), (x.unsqueeze(-1) for x in (a, b, c))
        after = (torch.where(wide, d * M + e * P + added, M), torch.where(wide, f * P + added, P))
        fresh = torch.cat((torch.ones_like(a), torch.zeros_like(b), torch.ones_like(c)), dim=-1)
        mix = torch.where(is_open, fresh, torch.cat((a, b, c), dim=-1))
        return o, (*after, mix), gate


PUBLISHED = {
    # arXiv:2407.04620: 1.3B parameters, 24 layers of 32 heads of 64.
    "ttt-linear-1.3b": StackConfig(2048, 2048, 24, 5504, TttConfig(2048, 32, 64, 1e-6)),
}
"""Published models by name, for the size of their memories."""
