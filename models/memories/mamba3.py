"""Mamba-3: a matrix for each head that decays, turns, and adds this token and the one before.

After arXiv:2603.15569 (A. Lahoti et al., 2026), single input and single output, written from its
equations and from the layout of its published checkpoints, whose weight names and shapes are kept.
For one token, with heads of P values, N state columns, and pairs of those columns that turn:

    z, x, B, C, dt0, a0, l0, w = in_proj u           no convolution
    B, C <- RMSNorm(B) + B_bias, RMSNorm(C) + C_bias             a bias for each head
    dt = softplus(dt0 + dt_bias)     A = min(-f(a0), -floor)     l = sigmoid(l0)
    R <- R turned by pi tanh(w) dt   B, C <- R B, R C            its complex state, as a rotation
    h <- e^(dt A) (h + (1 - l) dt B_last x_last^T) + l dt B x^T  its trapezoidal rule
    out  out_proj((h^T C + D x) silu(z))

Both terms are one write of rank 2 in the algebra of `stategate.models.memories.matrix`. Neither
decay nor rotation is a write: the decay since the last write is carried as a logarithm and folded
into the reads, and h is kept as it was before it turned. So a closed head keeps h bit for bit. The
gate is the Frobenius norm of the write, which is the error that skipping it makes.

R is carried as a cosine and a sine of each pair. An angle would jump at the end of its range, and
two engines that differ by a rounding would disagree there by a whole turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from stategate.contract import StateSpec
from stategate.models.configuration import Rule
from stategate.models.functions import share
from stategate.models.memories.mamba2.cell import dt_bias_at_start
from stategate.models.memories.matrix import Ring, matrix_of, norm_of
from stategate.models.memories.stack import LayerConfig, StackConfig, States, Stepped
from stategate.models.step import opens


@dataclass(frozen=True, slots=True)
class Mamba3Config(LayerConfig):
    """One layer; all heads share B and C.

    Attributes:
        width: Features of the layer's input and output.
        heads: How many; ``heads * head_dim`` is twice the width in published models.
        head_dim: Values of a head, P.
        state_dim: Columns of a head's matrix, N.
        pairs: Pairs of columns that turn: a quarter of N in published models, at most half of it.
        decay: What makes -A of its projection; published weights belong to one of them.
        decay_floor: Least -A; 1e-4 in published models.
        norm_eps: Of every norm.
    """

    kind: ClassVar[str] = "mamba3"
    width: int
    heads: int
    head_dim: int
    state_dim: int
    pairs: int
    decay: Literal["softplus", "heavy_tail"]
    decay_floor: float
    norm_eps: float

    def rules(self) -> Iterator[Rule]:
        """Pairs are columns, and every head forgets."""
        most = self.state_dim // 2
        yield Rule("pairs", self.pairs <= most, f"at most {most}, half of state_dim")
        yield Rule("decay_floor", self.decay_floor > 0, "more than 0")
        yield from LayerConfig.rules(self)

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk."""
        return 16

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Matrix, log-decay since its last write, rotation, and the token before."""
        n, p, k = self.heads, self.head_dim, self.state_dim
        return (
            StateSpec(f"{prefix}h", (1, n, k, p), gate="write", layout="head, state, value"),
            StateSpec(f"{prefix}log_decay", (1, n, 1), layout="head"),
            StateSpec(f"{prefix}turn", (1, n, 2 * self.pairs), layout="head, cosine and sine"),
            StateSpec(f"{prefix}B_last", (1, n, k), layout="head, state"),
            StateSpec(f"{prefix}x_last", (1, n, p), layout="head, value"),
        )

    def ring(self, prefix: str = "") -> Ring:
        """What waits for the matrix."""
        parts = {f"{prefix}h": self.state_dim}
        return Ring(f"{prefix}ring", self.heads, 1, self.head_dim, parts, updates=2)

    def build(self) -> nn.Module:
        """The layer."""
        return Mamba3Layer(self)


class Token(NamedTuple):
    """What the projections make of a token, each ``(rows, heads, ...)``.

    Attributes:
        x: ``P``.
        B: ``N``, turned where it is written.
        C: ``N``, turned where it reads.
        decay: ``1``, dt A.
        last: ``1``, weight of the token before, its decay included.
        now: ``1``, weight of this token.
    """

    x: Tensor
    B: Tensor
    C: Tensor
    decay: Tensor
    last: Tensor
    now: Tensor

    def turned(self, turn: Tensor) -> Token:
        """With B and C turned."""
        return self._replace(B=_turned(self.B, turn), C=_turned(self.C, turn))


class Mamba3Layer(nn.Module):
    """One mixer, whose states are those of `Mamba3Config.states`."""

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__()
        self.config = c = config
        inner = c.heads * c.head_dim
        self._parts = [inner, inner, c.state_dim, c.state_dim, c.heads, c.heads, c.heads, c.pairs]
        self.in_proj = nn.Linear(c.width, sum(self._parts), bias=False)
        self.dt_bias = nn.Parameter(dt_bias_at_start(c.heads))
        # The axis in the middle is the rank, 1 for single inputs and outputs.
        self.B_bias, self.C_bias = (
            nn.Parameter(torch.ones(c.heads, 1, c.state_dim)) for _ in range(2)
        )
        self.B_norm, self.C_norm = (nn.RMSNorm(c.state_dim, eps=c.norm_eps) for _ in range(2))
        self.D = nn.Parameter(torch.ones(c.heads))
        self.out_proj = nn.Linear(inner, c.width, bias=False)

    def initial_states(self) -> dict[str, Tensor]:
        """Nothing has turned yet: cosines are 1, sines 0."""
        c = self.config
        return {"turn": torch.tensor([1.0, 0.0]).repeat(1, c.heads, c.pairs)}

    def step(self, u: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token ``(rows, width)``: output, next states, gate ``(rows, heads)``."""
        h, log_decay, turn, *before = states
        z, token, turn = self.project(u, turn)
        y, after, gate = mamba3_step(token, (h, log_decay, *before), threshold)
        y = y + self.D.unsqueeze(-1) * token.x
        h, log_decay, *before = after
        return self.out_proj(y.flatten(-2) * silu(z)), (h, log_decay, turn, *before), gate

    def chunk(self, u: Tensor, states: States, threshold: Tensor, valid: Tensor) -> Stepped:
        """Several tokens ``(rows, time, width)``; the gate is ``(rows, time, heads)``.

        Args:
            u: After the norm of the block.
            states: As in `step`.
            threshold: ``(1,)``.
            valid: ``(rows, time)`` bool, true up to the last token that is meant.
        """
        h, log_decay, turn, *before = states
        z, token, spin = self._unturned(u)
        still, time = self.initial_states()["turn"].to(spin), valid.shape[1]
        spin = torch.where(valid[..., None, None], spin, still)
        # Products of all before: each round joins twice as many tokens.
        for reach in (1 << i for i in range((time - 1).bit_length())):
            padded = torch.cat((torch.zeros_like(spin) + still, spin), dim=1)
            spin = _turned(spin, padded[:, time - reach : -reach])
        turns = _turned_on(turn.unsqueeze(1), spin)
        states = (h, log_decay, *before)
        y, after, gate = mamba3_chunk(token.turned(turns), states, threshold, valid)
        y = y + self.D.unsqueeze(-1) * token.x
        h, log_decay, *before = after
        return self.out_proj(y.flatten(-2) * silu(z)), (h, log_decay, turns[:, -1], *before), gate

    def project(self, u: Tensor, turn: Tensor) -> tuple[Tensor, Token, Tensor]:
        """Everything that does not need h: output gate, token, next rotation."""
        z, token, spin = self._unturned(u)
        turn = _turned_on(turn, spin)
        return z, token.turned(turn), turn

    def _unturned(self, u: Tensor) -> tuple[Tensor, Token, Tensor]:
        """Output gate, token whose B and C are not turned yet, and by what it turns."""
        c = self.config
        z, x, B, C, dt, a, trapezoid, angle = torch.split(self.in_proj(u), self._parts, -1)
        dt = softplus(dt + self.dt_bias).unsqueeze(-1)
        rate = softplus(a) if c.decay == "softplus" else heavy_tail(a)
        decay = -rate.clamp(min=c.decay_floor).unsqueeze(-1) * dt
        angle = (math.pi * torch.tanh(angle)).unsqueeze(-2) * dt
        spin = torch.stack((torch.cos(angle), torch.sin(angle)), dim=-1).flatten(-2)
        B, C = (
            norm(part).unsqueeze(-2) + bias.squeeze(1)
            for norm, part, bias in ((self.B_norm, B, self.B_bias), (self.C_norm, C, self.C_bias))
        )
        now = share(trapezoid).unsqueeze(-1) * dt
        last = (dt - now) * torch.exp(decay)
        x = torch.unflatten(x, -1, (c.heads, c.head_dim))
        return z, Token(x, B, C, decay, last, now), spin


def mamba3_step(token: Token, states: States, threshold: Tensor) -> Stepped:
    """The recurrence of the heads: reads, next states, gate.

    Args:
        token: Of this step.
        states: Matrix or what waits in its place, log-decay, B and x of the token before.
        threshold: ``(1,)``.
    """
    h, log_decay, B_last, x_last = states
    matrix, after = matrix_of(h), log_decay + token.decay
    keys = torch.stack((token.last * B_last, token.now * token.B), dim=-2)
    values = torch.stack((x_last, token.x), dim=-2)
    gate = norm_of(keys, values)
    is_open = opens(gate, threshold).unsqueeze(-1)
    decay, query = torch.exp(after), token.C.unsqueeze(-2)
    own = torch.matmul(torch.matmul(query, keys.mT), values).squeeze(-2)
    y = matrix.read(query, decay).squeeze(-2) + torch.where(is_open, own, 0.0)
    after = torch.where(is_open, torch.zeros_like(after), after)
    return y, (matrix.after(decay, keys, values, is_open), after, token.B, token.x), gate


def mamba3_chunk(token: Token, states: States, threshold: Tensor, valid: Tensor) -> Stepped:
    """As many steps as ``time``, by matrix products: no write depends on what h holds.

    With c the running sum of log-decays, the two products of token j weigh exp(c_t - c_j) at t if j
    was written, and the memory before exp(c_t): no exponent is above zero.

    Args:
        token: With a time axis behind the rows.
        states: As in `mamba3_step`.
        threshold: ``(1,)``.
        valid: ``(rows, time)`` bool; other tokens change nothing.
    """
    h, log_decay, *before = states
    B, x = (
        torch.cat((one.unsqueeze(1), those), dim=1)
        for one, those in zip(before, (token.B, token.x), strict=True)
    )
    keys = torch.stack((token.last * B[:, :-1], token.now * token.B), dim=-2)
    values = torch.stack((x[:, :-1], token.x), dim=-2)
    gate = norm_of(keys, values)
    is_open = (opens(gate, threshold) & valid.unsqueeze(-1)).transpose(1, 2)
    decay = torch.where(valid[..., None, None], token.decay, 0.0).transpose(1, 2)
    times = torch.arange(valid.shape[1], device=valid.device)
    past = times[:, None] >= times
    # Sums of decays over j < t <= i: a difference of running sums would lose digits.
    between = past[:, None, :] & (times[None, :, None] < times)
    pairs = torch.matmul(between.flatten(0, 1).to(decay.dtype), decay)
    pairs = torch.unflatten(pairs.squeeze(-1), -1, past.shape)
    weights = torch.exp(pairs) * (past & is_open.unsqueeze(-2))
    weights = weights.repeat_interleave(2, dim=-1)  # (rows, heads, time, two products a token)
    keys, values = (part.transpose(1, 2).flatten(2, 3) for part in (keys, values))
    query, total = token.C.transpose(1, 2), log_decay.unsqueeze(-2) + torch.cumsum(decay, dim=2)
    y = torch.matmul(query * torch.exp(total), h)
    y = y + torch.matmul(torch.matmul(query, keys.mT) * weights, values)
    # The last write takes the decay so far into h; what comes after it is carried, as by steps.
    latest = (is_open * times).amax(dim=-1, keepdim=True)  # (rows, heads, 1)
    at_latest = (times == latest).unsqueeze(-1)
    until_write = torch.exp((total * at_latest).sum(dim=2, keepdim=True))
    weighed = keys * (weights * at_latest).sum(dim=2).unsqueeze(-1)
    written = until_write * h + torch.matmul(weighed.mT, values)
    any_open = is_open.any(dim=-1, keepdim=True)
    since = (decay.squeeze(-1) * (times > latest)).sum(dim=-1, keepdim=True)
    after = torch.where(any_open, since, total[:, :, -1])
    h = torch.where(any_open.unsqueeze(-1), written, h)
    end = valid.sum(dim=1)[:, None, None, None]  # of the last token that is meant
    B, x = (torch.gather(p, 1, end.expand(-1, 1, *p.shape[2:])).squeeze(1) for p in (B, x))
    return y.transpose(1, 2), (h, after, B, x), gate


def heavy_tail(x: Tensor) -> Tensor:
    """Above 0: ``1 + x``, and ``1 / (1 - x)`` below 0."""
    return x.clamp(min=0.0) + torch.reciprocal(1.0 - x.clamp(max=0.0))


def _turned_on(turn: Tensor, spin: Tensor) -> Tensor:
    """A rotation, further; roundings would let it grow or shrink over many thousand steps."""
    turn = torch.unflatten(_turned(turn, spin), -1, (-1, 2))
    return (turn / torch.sqrt((turn * turn).sum(-1, keepdim=True))).flatten(-2)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """The first pairs of neighbours in the last axis, turned; what is behind them stays."""
    pairs = torch.unflatten(x[..., : turn.shape[-1]], -1, (-1, 2))
    a, b = pairs.unbind(-1)
    cosine, sine = torch.unflatten(turn, -1, (-1, 2)).unbind(-1)
    turned = torch.stack((a * cosine - b * sine, a * sine + b * cosine), dim=-1).flatten(-2)
    rest = x[..., turn.shape[-1] :]
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _published(width: int, layers: int) -> StackConfig:
    heads = 2 * width // 64
    layer = Mamba3Config(width, heads, 64, 128, 32, "heavy_tail", decay_floor=1e-4, norm_eps=1e-5)
    return StackConfig(width, width, layers, None, layer)


PUBLISHED = {
    # The model card of its authors: 24 layers of width 2,048, 64 heads of 64 by 128.
    "mamba3-1.5b": _published(2048, 24),
}
"""Published models by name, for the size of their memories."""
