"""RWKV-7: a matrix for each head that forgets by channel, erases along one key and adds another.

After arXiv:2503.14456 (B. Peng et al., 2025), written from its equations, with the published names
of weights in lower case. For one token, with S (key, value), w the decay of each key channel:

    S <- Diag(w) S - (kk a) (kk^T S) + k v^T      kk of unit length, S of the erase not yet decayed
    o  = S^T r                                    read after the write

Both terms are one write of rank 2, k' = [kk a, k] and u = [-S^T kk, v], in the algebra of
`stategate.models.memories.matrix`. As in the delta family decay is no write: its logarithm since
the last write is carried and folded into the reads, so that a closed head keeps S bit for bit. The
gate is the Frobenius norm of k'^T u, which is the error that skipping it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from stategate.contract import StateSpec
from stategate.contract.errors import SpecError
from stategate.models.configuration import Rule
from stategate.models.memories.matrix import Ring, matrix_of, norm_of
from stategate.models.memories.stack import LayerConfig, Stack, StackConfig, States, Stepped
from stategate.models.step import StepResult, Tensors, opens

_DECAY = -0.606531  # -exp(-1/2): a channel keeps more than 0.545 of itself in each step
_HEAD_EPS = 64e-5
_UNIT_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class Rwkv7Config(LayerConfig):
    """One layer: time mix and channel mix.

    Attributes:
        width: Features of the layer's input and output, divided among the heads.
        head_dim: Width of a key and of a value; 64 in published models.
        decay_rank: Inner width of the decay's bottleneck.
        rate_rank: Of the in-context learning rate's.
        value_rank: Of the mix with the first layer's values.
        gate_rank: Of the output gate's.
        hidden: Hidden width of the channel mix; four times ``width`` in published models.
        norm_eps: Of the layer norms; 1e-5 in published models.
    """

    kind: ClassVar[str] = "rwkv7"
    width: int
    head_dim: int
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int
    hidden: int
    norm_eps: float

    def rules(self) -> Iterator[Rule]:
        """Heads share the width evenly."""
        yield Rule("head_dim", self.width % self.head_dim == 0, f"a divisor of {self.width}")
        yield from LayerConfig.rules(self)

    @property
    def gates(self) -> int:
        """One a head."""
        return self.width // self.head_dim

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Matrix, log-decay since its last write, and what both mixes saw last."""
        n, d = self.gates, self.head_dim
        return (
            StateSpec(f"{prefix}S", (1, n, d, d), gate="write", layout="head, key, value"),
            StateSpec(f"{prefix}log_decay", (1, n, d), layout="head, key"),
            StateSpec(f"{prefix}time_last", (1, self.width), layout="channel"),
            StateSpec(f"{prefix}channel_last", (1, self.width), layout="channel"),
        )

    def ring(self, prefix: str = "") -> Ring:
        """What waits for the matrix."""
        d = self.head_dim
        return Ring(f"{prefix}ring", self.gates, d, d, {f"{prefix}S": d}, updates=2)

    def build(self) -> nn.Module:
        """Refused: a layer alone has no first layer whose values it shares."""
        raise SpecError(
            "layers of RWKV-7 share the values of the first of them",
            found="Stack(StackConfig(..., layer=Rwkv7Config(...)))",
            expected="Rwkv7(StackConfig(..., layer=Rwkv7Config(...)))",
        )


class Rwkv7Layer(nn.Module):
    """Time mix, whose states are matrix, log-decay and last input."""

    def __init__(self, config: Rwkv7Config) -> None:
        super().__init__()
        self.config = c = config
        self.x_mix = nn.Parameter(torch.rand(6, c.width))  # of r, w, k, v, a, g
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(c.width, c.width, bias=False) for _ in range(4)
        )
        # An offset and the two halves of a bottleneck: decay, rate, first values, output gate.
        self.w0, self.w1, self.w2 = _low_rank(c.width, c.decay_rank)
        self.a0, self.a1, self.a2 = _low_rank(c.width, c.rate_rank)
        self.v0, self.v1, self.v2 = _low_rank(c.width, c.value_rank)
        _, self.g1, self.g2 = _low_rank(c.width, c.gate_rank)
        self.k_k, self.k_a, self.r_k = (nn.Parameter(torch.rand(c.width)) for _ in range(3))
        self.ln_x = nn.LayerNorm(c.width, eps=_HEAD_EPS)  # of each head by itself

    def step(
        self, x: Tensor, first: Tensor | None, states: States, threshold: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Any, Tensor], Tensor]:
        """One token ``(rows, width)``.

        Args:
            x: Of this token, after its norm.
            first: The first layer's values; None in that layer.
            states: Matrix, log-decay, and x of the token before.
            threshold: ``(1,)``.

        Returns:
            Output, the first layer's values, matrix and log-decay, the gate ``(rows, heads)``.
        """
        S, log_decay, last = states
        mixed = x.unsqueeze(1) + (last - x).unsqueeze(1) * self.x_mix
        xr, xw, xk, xv, xa, xg = mixed.unbind(1)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        g = _DECAY * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)
        a = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        if first is not None:
            v = v + (first - v) * torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2)
        kk = self._heads(k * self.k_k)
        kk = kk / torch.sqrt((kk * kk).sum(-1, keepdim=True)).clamp(min=_UNIT_EPS)
        k = k * (1.0 + (a - 1.0) * self.k_a)
        by_head = (self._heads(y) for y in (r, k, v, g, a))
        token = Token(kk, *by_head)
        o, after, write = rwkv7_step(token, S, log_decay, threshold)
        o = layer_norm(o, (self.config.head_dim,), eps=_HEAD_EPS).flatten(-2)
        o = o * self.ln_x.weight + self.ln_x.bias
        bonus = self._heads(r * k * self.r_k).sum(-1, keepdim=True) * self._heads(v)
        out: Tensor = self.output((o + bonus.flatten(-2)) * gate)
        return out, v if first is None else first, after, write

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.config.head_dim)


class Token(NamedTuple):
    """What the projections make of a token, each ``(rows, heads, head_dim)``.

    Attributes:
        kk: Key that is erased, of unit length.
        r: What is asked for.
        k: Key that is written.
        v: Value.
        g: Log-decay, below 0.
        a: How much is erased.
    """

    kk: Tensor
    r: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    a: Tensor


def rwkv7_step(token: Token, S: Any, log_decay: Tensor, threshold: Tensor) -> Stepped:
    """The recurrence of the heads: reads, next matrix and log-decay, gate.

    Args:
        token: Of this step.
        S: ``(rows, heads, key, value)``, or what waits in its place.
        log_decay: ``(rows, heads, key)``, since the last write.
        threshold: ``(1,)``.
    """
    kk, r, k, v, g, a = token
    matrix, after = matrix_of(S), log_decay + g
    decay = torch.exp(after)
    # What is erased is read before this step's decay, what is answered behind it.
    queries = torch.stack((kk * torch.exp(log_decay), r * decay), dim=-2)
    erased, read = matrix.read(queries, torch.ones_like(g)).unbind(-2)
    keys, u = torch.stack((kk * a, k), dim=-2), torch.stack((-erased, v), dim=-2)
    write = norm_of(keys, u)
    is_open = opens(write, threshold).unsqueeze(-1)
    own = torch.matmul(torch.matmul(r.unsqueeze(-2), keys.mT), u).squeeze(-2)
    o = read + torch.where(is_open, own, 0.0)
    after = torch.where(is_open, torch.zeros_like(after), after)
    return o, (matrix.after(decay, keys, u, is_open), after), write


class _Block(nn.Module):
    """Both mixes behind their norms."""

    def __init__(self, config: Rwkv7Config) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.ln1, self.ln2 = (nn.LayerNorm(width, eps=config.norm_eps) for _ in range(2))
        self.att = Rwkv7Layer(config)
        self.x_k = nn.Parameter(torch.rand(width))
        self.ffn_key = nn.Linear(width, hidden, bias=False)
        self.ffn_value = nn.Linear(hidden, width, bias=False)


class Rwkv7(Stack):
    """The stack, whose layers share the values of the first of them."""

    def __init__(self, config: StackConfig) -> None:
        layer = config.layer
        if not isinstance(layer, Rwkv7Config) or config.mlp is not None:
            raise SpecError(
                "RWKV-7 has layers of its own, with a channel mix in each",
                found=f"layer={type(layer).__name__}, mlp={config.mlp}",
                expected="StackConfig(..., mlp=None, layer=Rwkv7Config(...))",
            )
        super().__init__(config)
        # Behind the embedding and before the head, as published.
        self.ln0 = nn.LayerNorm(layer.width, eps=layer.norm_eps)
        self.norm: nn.Module = nn.LayerNorm(layer.width, eps=layer.norm_eps)

    def _block(self) -> nn.Module:
        assert isinstance(self.config.layer, Rwkv7Config)
        return _Block(self.config.layer)

    def _run(
        self, x: Tensor, threshold: Tensor, states: Tensors, valid: Tensor | None
    ) -> StepResult:
        x = self.ln0(self.encode(x))
        first, gates = None, []
        after: dict[str, Any] = {}
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            names = [state.name for state in self.config.layer.states(f"layers.{i}.")]
            S, log_decay, last, channel_last = (states[name] for name in names)
            z = block.ln1(x)
            mixed, first, matrix, gate = block.att.step(z, first, (S, log_decay, last), threshold)
            x = x + mixed
            y = block.ln2(x)
            hidden = relu(block.ffn_key(y + (channel_last - y) * block.x_k))
            x = x + block.ffn_value(hidden * hidden)
            after.update(zip(names, (*matrix, z, y), strict=True))
            gates.append(gate)
        y = self.head(self.norm(x))
        return StepResult({"y": y}, after, {"write": torch.stack(gates, dim=-2)})


def _low_rank(width: int, rank: int) -> list[nn.Parameter]:
    drawn = (
        torch.randn(width) - 1.0,
        torch.randn(width, rank) * width**-0.5,
        torch.randn(rank, width) * rank**-0.5,
    )
    return [nn.Parameter(tensor) for tensor in drawn]


def _published(width: int, layers: int, ranks: tuple[int, int, int, int]) -> StackConfig:
    layer = Rwkv7Config(width, 64, *ranks, hidden=4 * width, norm_eps=1e-5)
    return StackConfig(width, width, layers, None, layer)


PUBLISHED = {
    # arXiv:2503.14456, table of sizes: layers of width D, heads of 64.
    "rwkv7-0.1b": _published(768, 12, (64, 64, 32, 128)),
    "rwkv7-0.4b": _published(1024, 24, (64, 64, 32, 128)),
    "rwkv7-1.5b": _published(2048, 24, (96, 96, 64, 256)),
    "rwkv7-2.9b": _published(2560, 32, (96, 96, 64, 320)),
}
"""Published models by name, for the size of their memories."""
