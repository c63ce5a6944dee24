"""AURA-Mem: one fast-weight matrix, and a gate that opens only when a write would change an action.

After arXiv:2606.02775 (J. Chen, 2026), written from its published description; what that leaves
open is decided here. State: ``S`` (32, 32), a key-to-value matrix, and ``b`` (32,), float32:
4,224 bytes for ever. With k, q of unit length and v the value of this observation:

    residual   r = v - k S - b            surprise  s = log(mean(r^2) + 1e-3)
    gate       l = w2 . silu(MLP(z) + A r + gs * s) + b2,  open iff l > threshold
    write      S <- f S + k^T (beta r),   b <- f b + c2 beta r,   f = 1 - 0.004 beta
    read       o = q S + b  after the write, by its rank-1 correction
    action     head(o, x)

The leak f acts only when writing: without it the matrix random-walks in directions that are rarely
excited and accuracy is gone at 100,000 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.functions import unit
from stategate.models.memories.matrix import Ring, Waiting
from stategate.models.step import StepResult, Tensors, opens

LEAK = 0.004  # of what is there, for each unit of a write
_SURPRISE_FLOOR = 1e-3


class Projections(NamedTuple):
    """What depends on the observation alone, for any leading shape (...).

    Attributes:
        x: ``(..., 64)``.
        k: ``(..., 32)``, unit length.
        q: ``(..., 32)``, unit length.
        v: ``(..., 32)``.
        beta: ``(..., 1)`` in (0, 1), the step size of a write.
        novelty: ``(..., 32)``, the gate's view of the observation.
    """

    x: Tensor
    k: Tensor
    q: Tensor
    v: Tensor
    beta: Tensor
    novelty: Tensor


class Recall(NamedTuple):
    """What the memory says before this step's write.

    Attributes:
        read: ``(batch, 32)``, q S.
        residual: ``(batch, 32)``, v - k S - b.
        gate: ``(batch, 1)``, the gate's logit.
    """

    read: Tensor
    residual: Tensor
    gate: Tensor


def surprise_of(residual: Tensor) -> Tensor:
    """``(..., 1)``, how far the memory is from what is seen ``(..., 32)``."""
    return torch.log((residual * residual).mean(-1, keepdim=True) + _SURPRISE_FLOOR)


class AuraMem(nn.Module):
    """The AURA-Mem policy: feature in, action logits out, 4,224 bytes in between.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: What a key-value cache of the same width (one float32 key and value)
            would grow by in each step.
    """

    family = "aura"

    def __init__(
        self,
        d_model: int = 64,
        d_key: int = 32,
        d_value: int = 32,
        actions: int = 8,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model, self.d_key, self.d_value, self.actions = d_model, d_key, d_value, actions
        self.threshold = threshold
        self.kv_bytes_per_step = 4 * (d_key + d_value)
        self.encode = nn.Linear(d_model, d_model)
        self.to_k = nn.Linear(d_model, d_key, bias=False)
        self.to_q = nn.Linear(d_model, d_key, bias=False)
        self.to_v = nn.Linear(d_model, d_value)
        self.to_beta = nn.Linear(d_model, 1)
        # The bias memory's rate is tied to beta: a rate of its own makes the update expansive.
        self.bias_rate = nn.Parameter(torch.tensor(-3.0))
        self.gate_in = nn.Linear(d_model, 48)
        self.gate_hidden = nn.Linear(48, d_value)
        self.gate_residual = nn.Linear(d_value, d_value, bias=False)
        self.gate_surprise = nn.Parameter(torch.zeros(d_value))
        self.gate_out = nn.Linear(d_value, 1)
        self.head_in = nn.Linear(d_value + d_model, 64)
        self.head_out = nn.Linear(64, actions)
        nn.init.constant_(self.gate_out.bias, 2.0)  # starts open: a closed gate learns nothing

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return StepSpec(
            inputs=(TensorSpec("z", (1, self.d_model)),),
            outputs=(TensorSpec("action", (1, self.actions)),),
            states=(
                StateSpec("S", (1, self.d_key, self.d_value), gate="gate", layout="key, value"),
                StateSpec("b", (1, self.d_value), gate="gate", layout="value"),
            ),
            gates=(GateSpec("gate", "hard", (1, 1), self.threshold, "threshold"),),
        )

    def project(self, z: Tensor) -> Projections:
        """Everything that needs no memory; ``(..., 64)`` in."""
        x = silu(self.encode(z))
        return Projections(
            x=x,
            k=unit(self.to_k(x)),
            q=unit(self.to_q(x)),
            v=self.to_v(x),
            beta=torch.sigmoid(self.to_beta(x)) / (1.0 + self.c2),
            novelty=self.gate_hidden(silu(self.gate_in(z))),
        )

    @property
    def c2(self) -> Tensor:
        """Rate of the bias memory relative to the matrix, a scalar in (0, 1)."""
        return torch.sigmoid(self.bias_rate)

    def read(self, p: Projections, S: Any, b: Tensor) -> tuple[Tensor, Tensor]:
        """The read and the residual of `Recall`; ``(batch, ...)`` projections.

        Args:
            p: Of this observation.
            S: ``(batch, key, value)``, or what waits in its place.
            b: ``(batch, value)``.
        """
        # k and q as rows of one product: one pass over the matrix.
        queries = torch.stack((p.k, p.q), dim=1)
        if isinstance(S, Waiting):
            both = S.read(queries[:, None], torch.ones_like(p.beta)[:, None]).squeeze(1)
        else:
            both = torch.bmm(queries, S)
        keyed, read = both.unbind(1)
        return read, p.v - keyed - b

    def recall(self, p: Projections, S: Any, b: Tensor) -> Recall:
        """Read both ways and ask the gate; ``(batch, ...)`` projections."""
        read, residual = self.read(p, S, b)
        # First-order gate: it sees the surprise, it is not trained through it.
        observed = residual.detach()
        surprise = surprise_of(observed)
        hidden = p.novelty + self.gate_residual(observed) + surprise * self.gate_surprise
        return Recall(read, residual, self.gate_out(silu(hidden)))

    def act(self, o: Tensor, x: Tensor) -> Tensor:
        """Action logits ``(..., actions)`` from the read ``(..., 32)`` and ``(..., 64)``."""
        logits: Tensor = self.head_out(silu(self.head_in(torch.cat((o, x), dim=-1))))
        return logits

    def rings(self) -> tuple[Ring, ...]:
        """One for both: the bias is a row of the matrix whose key never changes."""
        return (Ring("ring", 1, 1, self.d_value, {"S": self.d_key, "b": 1}),)

    def step(self, inputs: Tensors, states: Mapping[str, Any]) -> StepResult:
        """One step; a closed gate gives the old states back, bit for bit."""
        S, b = states["S"], states["b"]
        p = self.project(inputs["z"])
        if isinstance(S, Waiting):
            b = b.read(torch.ones_like(p.beta)[:, None, None], torch.ones_like(p.beta)[:, None])
            b = b.flatten(1)
        recall = self.recall(p, S, b)
        is_open = opens(recall.gate, inputs["threshold"])
        keep = 1.0 - LEAK * p.beta
        change = p.beta * recall.residual
        # The read after the write, without the written matrix: q (f S + k^T d) = f q S + (q.k) d.
        overlap = (p.k * p.q).sum(-1, keepdim=True)
        written = keep * (recall.read + b) + change * (overlap + self.c2)
        o = torch.where(is_open, written, recall.read + b)
        if isinstance(S, Waiting):
            constant = self.c2.expand_as(keep)
            change, keep, is_open = change[:, None], keep[:, None], is_open[:, None]
            after = {
                "S": S.after(keep, p.k[:, None], change, is_open),
                "b": states["b"].after(keep, constant[:, None], change, is_open),
            }
            return StepResult({"action": self.act(o, p.x)}, after, {"gate": recall.gate})
        next_S = keep.unsqueeze(-1) * S + p.k.unsqueeze(-1) * change.unsqueeze(-2)
        next_b = keep * b + self.c2 * change
        return StepResult(
            outputs={"action": self.act(o, p.x)},
            states={
                "S": torch.where(is_open.unsqueeze(-1), next_S, S),
                "b": torch.where(is_open, next_b, b),
            },
            gates={"gate": recall.gate},
        )


class _Published:
    """The sizes of the paper, which are those of the shipped model; no weight is made."""

    def step_spec(self) -> StepSpec:
        with torch.device("meta"):
            return AuraMem().step_spec()


PUBLISHED = {"aura-mem": _Published()}
