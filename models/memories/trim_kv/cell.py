"""TRIM-KV: attention over a bounded cache; each token carries how fast it is forgotten.

After arXiv:2512.03324 (retention gates, inference rule of section 4), written from its equations.
In each layer and key-value head, for the token at position t with hidden state x:

    log_beta  = logsigmoid(W2 silu(W1 x + b1) + b)       its retention, stored with it
    o         = softmax(q [K, k_t]^T / sqrt d) [V, v_t]   plain attention, over what is kept
    score_i   = log_beta_i (t + 2 - pos_i)                the lowest of them is the weakest

The factor is t + 2 - pos and not the age: tokens seen, the present one included, + 1 - pos. The
newest token has factor 2, and can be the weakest. Which tokens leave, and when, is the
configuration's ``form``.

*Evicting is no move.* Keys carry their rotation and attention does not ask for an order, so a token
that leaves only has its stamp cleared; no key and no value is copied.

*Time.* Only differences of positions count, so the step runs modulo 2^30, in integers: the position
and the angle of every rotary frequency (rounded to 2^-30 turns a step) are carried in the state
``clock``. Angles keep their digits for weeks, where ``position * frequency`` in float32 is off by
0.03 rad after a million steps. What wraps is the age of a token that has been kept for 2^30 steps,
248 days at 50 Hz: it is then taken for a new one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.contract import StepSpec
from stategate.models.functions import log_sigmoid
from stategate.models.memories.trim_kv.config import TrimKvConfig
from stategate.models.step import StepResult, Tensors, opens
from stategate.models.weights import load_part, weights_sha256

PERIOD = 1 << 30
"""Steps after which the clock starts again; half of what int32 holds, so that no sum overflows."""

# Stands for minus infinity where arithmetic follows: below any score, since |log_beta| < 1e8, and
# its square is still a float32.
_NEVER = -1e18


class Token(NamedTuple):
    """What one observation adds to one layer, or to all of them with ``layers`` as second axis.

    Attributes:
        k: ``(rows, kv heads, head_dim)``, rotated.
        v: ``(rows, kv heads, head_dim)``.
        log_beta: ``(rows, kv heads)``, below 0.
    """

    k: Tensor
    v: Tensor
    log_beta: Tensor


class _Layer(nn.Module):
    """Attention with a retention gate, then a SwiGLU block; both behind a norm, with residual."""

    def __init__(self, c: TrimKvConfig) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = c.kv_heads, c.head_dim
        self.attention_norm = nn.RMSNorm(c.width, c.norm_eps)
        self.to_q = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.to_k = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.to_v = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.q_norm = nn.RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.gate_in = nn.Linear(c.width, c.gate_hidden) if c.gate_hidden else None
        self.gate_out = nn.Linear(c.gate_hidden or c.width, c.kv_heads)
        nn.init.constant_(self.gate_out.bias, c.gate_bias)
        self.to_out = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.mlp_norm = nn.RMSNorm(c.width, c.norm_eps)
        self.mlp_in = nn.Linear(c.width, 2 * c.mlp, bias=False)
        self.mlp_out = nn.Linear(c.mlp, c.width, bias=False)

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, occupied: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Token]:
        """Read the cache and this token; ``(rows, width)`` in and out.

        Args:
            x: Residual stream.
            k: Cached keys ``(rows, kv heads, slots, head_dim)``.
            v: Cached values, likewise.
            occupied: ``(rows, kv heads, slots)`` bool; other slots are not read.
            rotation: Cosine and sine ``(rows, 1, head_dim / 2)`` of this position.
        """
        z = self.attention_norm(x)
        q = rotated(self.q_norm(self._split(self.to_q(z))), *rotation)
        token = Token(
            rotated(self.k_norm(self._split(self.to_k(z))), *rotation),
            self._split(self.to_v(z)),
            log_sigmoid(self.gate_out(z if self.gate_in is None else silu(self.gate_in(z)))),
        )
        q = q.reshape(len(q), self.kv_heads, -1, self.head_dim) * self.head_dim**-0.5
        cached = torch.matmul(q, k.transpose(-1, -2))
        cached = torch.where(occupied.unsqueeze(-2), cached, _NEVER)
        own = torch.matmul(q, token.k.unsqueeze(-1))
        weights = torch.softmax(torch.cat((cached, own), dim=-1), dim=-1)
        o = torch.matmul(weights[..., :-1], v) + weights[..., -1:] * token.v.unsqueeze(-2)
        x = x + self.to_out(o.reshape(len(o), -1))
        gate, up = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_out(silu(gate) * up), token

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.head_dim)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i and channel i + head_dim / 2 as a pair."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class TrimKv(nn.Module):
    """A stack of attention layers whose memory never grows.

    Attributes:
        family: Kind of memory.
        form: What happens after each token; it is in the layout of every state too.
        kv_bytes_per_step: What an unbounded float32 cache would grow by in each step.
    """

    family = "trim_kv"

    def __init__(self, config: TrimKvConfig) -> None:
        super().__init__()
        c = self.config = config
        self.form = c.form
        self.kv_bytes_per_step = c.kv_bytes_per_step
        self.embed = nn.Linear(c.features, c.width)
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.width, c.norm_eps)
        self.head = nn.Linear(c.width, c.out_features)
        turns = [c.rope_theta ** (-2 * i / c.head_dim) / math.tau for i in range(c.head_dim // 2)]
        rates = torch.tensor([1, *(round(t * PERIOD) for t in turns)], dtype=torch.int32)
        self.register_buffer("rates", rates, persistent=False)
        self.rates: Tensor

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return self.config.step_spec()

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One token. In form ``admit`` a head whose gate is closed keeps every byte."""
        clock, stamp = states["clock"], states["stamp"]
        angles = clock[:, None, 1:].to(torch.float32) * (math.tau / PERIOD)
        rotation = (torch.cos(angles), torch.sin(angles))
        occupied = stamp > 0
        x = self.embed(inputs["x"])
        tokens = []
        for i, layer in enumerate(self.layers):
            x, token = layer(x, states["k"][:, i], states["v"][:, i], occupied[:, i], rotation)
            tokens.append(token)
        token = Token(*(torch.stack(part, dim=1) for part in zip(*tokens, strict=True)))
        now = clock[:, :1, None, None] + 1
        if self.form == "admit":
            after, gates = self._admitted(token, states, now, inputs["threshold"])
        else:
            after, gates = self._stored(token, states, now), {}
        # Integers, modulo the period: angles keep their digits after weeks of steps.
        ahead = clock + self.rates
        after["clock"] = torch.where(ahead >= PERIOD, ahead - PERIOD, ahead)
        return StepResult({"y": self.head(self.norm(x))}, after, gates)

    def retention_gates(self) -> dict[str, nn.Parameter]:
        """What retention training changes, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith("layers.") and name.split(".")[2] in ("gate_in", "gate_out")
        }

    def load_gates(self, path: str | Path) -> TrimKv:
        """Take trained retention gates; gives itself back, for a factory of one line."""
        self.load_state_dict(load_part(path, weights_sha256(self)), strict=False)
        return self.eval()

    def _admitted(
        self, token: Token, states: Tensors, now: Tensor, threshold: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The token replaces the weakest of each head that it beats."""
        score = _scores(states["log_beta"], states["stamp"], now)
        # The new token's own score, by which it must beat the weakest; its factor is 2.
        gate = 2 * token.log_beta - score.amin(-1)
        is_open = opens(gate, threshold).unsqueeze(-1)
        return _put(token, states, now, self._slot(score.argmin(-1)) & is_open), {"write": gate}

    def _stored(self, token: Token, states: Tensors, now: Tensor) -> dict[str, Tensor]:
        """The token takes the first free slot; in a full cache the weakest are freed after it."""
        # 0 is the least of stamps, and some are 0: freeing never waits for the next token.
        after = _put(token, states, now, self._slot(states["stamp"].argmin(-1)))
        stamp = after["stamp"]
        score = _scores(after["log_beta"], stamp, now)
        weakest = score.topk(self.config.buffer, dim=-1, largest=False).indices
        marks = torch.ones_like(weakest, dtype=score.dtype)
        leaves = torch.zeros_like(score).scatter(-1, weakest, marks) > 0
        is_full = stamp.amin(-1, keepdim=True) > 0
        after["stamp"] = torch.where(leaves & is_full, 0, stamp)
        return after

    def _slot(self, index: Tensor) -> Tensor:
        """One slot of each head, ``(rows, layers, kv heads, slots)`` bool."""
        return index.unsqueeze(-1) == torch.arange(self.config.slots, device=index.device)


def _scores(log_beta: Tensor, stamp: Tensor, now: Tensor) -> Tensor:
    """How well each slot's token is retained, float32; below all of them where there is none."""
    elapsed = now - stamp
    # The clock has started again since that token came.
    elapsed = torch.where(elapsed < 0, elapsed + PERIOD, elapsed)
    return torch.where(stamp > 0, log_beta * (elapsed + 2).to(torch.float32), _NEVER)


def _put(token: Token, states: Tensors, now: Tensor, slot: Tensor) -> dict[str, Tensor]:
    """The states with the token in the slots named; every other slot as it was, bit for bit."""
    return {
        "k": torch.where(slot.unsqueeze(-1), token.k.unsqueeze(-2), states["k"]),
        "v": torch.where(slot.unsqueeze(-1), token.v.unsqueeze(-2), states["v"]),
        "log_beta": torch.where(slot, token.log_beta.unsqueeze(-1), states["log_beta"]),
        "stamp": torch.where(slot, now, states["stamp"]),
    }
