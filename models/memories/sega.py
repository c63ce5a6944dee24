"""SEGA: token rows that observations rewrite, each as far as its attention says.

The state updater of SeedPolicy (arXiv:2603.05117), written from its equations. Memory s (tokens,
width) and observation o (observed tokens, width) pass through ``depth`` pairs of blocks, both of a
pair seeing the pair before them:

    s0        = s + pos
    block     s <- s + SelfAttn(LN s);  s <- s + CrossAttn(LN s, LN o);  s <- s + MLP(LN s)
              and the same for o with the roles exchanged
    cond      = LN(o_last), what the action head is conditioned on
    gate      G = sigmoid(m), m the mean of the memory's cross-attention logits, before their
              softmax, over layers, heads and observed tokens; G = 1 in the first step
    write     s <- G LN(s_last) + (1 - G) s0 - pos, row by row

The gate has no weights of its own. A row is written where G > threshold, else it keeps its bytes:
not ``(s + pos) - pos``, which would round it. G is never 0, so a threshold of 0 is the plain model.

Averaging over observed tokens commutes with the product of query and key, so the gate needs no
logits: m is the mean over layers of q . mean_j(k_j) / (heads sqrt(head_dim)), heads side by side,
and attention may stay fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule
from stategate.models.functions import share as logistic
from stategate.models.step import StepResult, Tensors, opens

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class SegaConfig(Configuration):
    """A state updater.

    Attributes:
        tokens: Rows of the memory.
        obs_tokens: Rows of one observation.
        width: Of both: queries of one meet keys of the other.
        depth: Pairs of blocks.
        heads: Of every attention; divides ``width``.
        mlp: Hidden width of the blocks' MLP; four times ``width`` where published.
        norm_eps: Of every layer norm.
        threshold: A row is written where its gate, in (0, 1), is above this; 0 writes them all.
    """

    tokens: int
    obs_tokens: int
    width: int
    depth: int
    heads: int
    mlp: int
    norm_eps: float
    threshold: float = 0.0

    def rules(self) -> Iterator[Rule]:
        """Heads share the width evenly, and the threshold lets the first step write."""
        yield Rule("heads", self.width % self.heads == 0, f"a divisor of width={self.width}")
        yield Rule("norm_eps", self.norm_eps > 0, "more than 0")
        yield Rule(
            "threshold",
            0 <= float(np.float32(self.threshold)) < 1,
            "0 up to but not 1",
            "the first step's gate is 1, and must write",
        )

    @property
    def kv_bytes_per_step(self) -> int:
        """What a float32 cache of all observations would grow by in each step, all layers."""
        return 2 * self.depth * self.obs_tokens * self.width * _FLOAT_BYTES

    def step_spec(self) -> StepSpec:
        """Signature of one step, known without building any weights."""
        observed = (1, self.obs_tokens, self.width)
        return StepSpec(
            inputs=(TensorSpec("obs", observed),),
            outputs=(TensorSpec("cond", observed),),
            states=(
                StateSpec("s", (1, self.tokens, self.width), gate="write", layout="token, channel"),
                StateSpec("started", (1, 1), gate="write", layout="1 after the first write"),
            ),
            gates=(
                GateSpec(
                    "write",
                    "hard",
                    (1, self.tokens),
                    self.threshold,
                    "threshold",
                    granularity="slot",
                    threshold_range=(0.0, 1.0),
                ),
            ),
        )


PUBLISHED: dict[str, SegaConfig] = {
    "seedpolicy-transformer": SegaConfig(60, 3, 256, 6, 8, 1024, 1e-5),
    "seedpolicy-unet": SegaConfig(60, 3, 512, 6, 8, 2048, 1e-5),
}
"""arXiv:2603.05117, by the action head behind it. One step is one call of the policy, which sees
three observations and acts for six control steps."""


class _Block(nn.Module):
    """Self-attention, attention to the other stream, MLP."""

    def __init__(self, c: SegaConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.self_norm = nn.LayerNorm(c.width, c.norm_eps)
        self.self_qkv = nn.Linear(c.width, 3 * c.width)
        self.self_out = nn.Linear(c.width, c.width)
        self.cross_norm = nn.LayerNorm(c.width, c.norm_eps)
        self.other_norm = nn.LayerNorm(c.width, c.norm_eps)
        self.cross_q = nn.Linear(c.width, c.width)
        self.cross_kv = nn.Linear(c.width, 2 * c.width)
        self.cross_out = nn.Linear(c.width, c.width)
        self.mlp_norm = nn.LayerNorm(c.width, c.norm_eps)
        self.mlp_in = nn.Linear(c.width, c.mlp)
        self.mlp_out = nn.Linear(c.mlp, c.width)

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """One stream after this block, and its mean cross-attention logits.

        Args:
            x: ``(rows, n, width)``.
            other: The other stream, ``(rows, m, width)``.

        Returns:
            ``(rows, n, width)``, and ``(rows, n)``: the mean over heads and the other's tokens.
        """
        x = x + self.self_out(self._attend(*self.self_qkv(self.self_norm(x)).chunk(3, dim=-1)))
        q = self.cross_q(self.cross_norm(x))
        k, v = self.cross_kv(self.other_norm(other)).chunk(2, dim=-1)
        x = x + self.cross_out(self._attend(q, k, v))
        scale = (self.heads * q.shape[-1]) ** -0.5  # 1 / heads of 1 / sqrt(width / heads)
        logits = (q * k.mean(1, keepdim=True)).sum(-1) * scale
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x)))), logits

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention by heads; ``(rows, n or m, width)`` each."""
        q, k, v = (t.reshape(len(t), t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3)), dim=-1)
        return torch.matmul(weights, v).transpose(1, 2).flatten(2)


class Sega(nn.Module):
    """The state updater of SeedPolicy: observed tokens in, conditioning tokens out.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: What a float32 cache of all observations would grow by in each step.
    """

    family = "sega"

    def __init__(self, config: SegaConfig) -> None:
        super().__init__()
        c = self.config = config
        self.kv_bytes_per_step = c.kv_bytes_per_step
        self.start = nn.Parameter(torch.randn(1, c.tokens, c.width) * 0.02)
        self.position = nn.Parameter(torch.zeros(1, c.tokens, c.width))
        self.memory_blocks = nn.ModuleList(_Block(c) for _ in range(c.depth))
        self.obs_blocks = nn.ModuleList(_Block(c) for _ in range(c.depth))
        self.memory_norm = nn.LayerNorm(c.width, c.norm_eps)
        self.obs_norm = nn.LayerNorm(c.width, c.norm_eps)

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return self.config.step_spec()

    def initial_states(self) -> dict[str, Tensor]:
        """The learned tokens, which the first write replaces whole."""
        return {"s": self.start}

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One call of the policy; a closed row gives its old bytes back."""
        old, started = states["s"], states["started"]
        s = placed = old + self.position
        o = inputs["obs"]
        logits = []
        for memory_block, obs_block in zip(self.memory_blocks, self.obs_blocks, strict=True):
            # Both blocks see the pair before them, so neither may use the other's result.
            (s, attention), (o, _) = memory_block(s, o), obs_block(o, s)
            logits.append(attention)
        mean = torch.stack(logits).mean(0)
        gate = torch.where(started > 0.5, logistic(mean), 1.0)
        is_open = opens(gate, inputs["threshold"])
        share = gate.unsqueeze(-1)
        written = share * self.memory_norm(s) + (1 - share) * placed - self.position
        # One open row ends the first step: from then on the gate is what attention says.
        any_open = is_open.any(-1, keepdim=True)
        return StepResult(
            outputs={"cond": self.obs_norm(o)},
            states={
                "s": torch.where(is_open.unsqueeze(-1), written, old),
                "started": torch.where(any_open, 1.0, started),
            },
            gates={"write": gate},
        )
