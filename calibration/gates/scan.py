"""AURA-Mem over many steps at once, and how its writes are chosen in training and in judging.

What is priced in a training is the mean opening probability. Gates are Bernoulli draws with a
straight-through gradient, so what a gate learns is the first-order utility of its write, and it
opens where that beats the price.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stategate.models.memories.aura import LEAK, AuraMem, Projections
from stategate.models.step import opens

GateChooser = Callable[[int, Tensor], Tensor]
"""From the step's index and gate logits ``(batch, 1)`` to gate values ``(batch, 1)``."""


UNASKED = 30.0
"""Logit of a gate that nobody asks: its chance of a write is 1."""


class Scanned(NamedTuple):
    """Result of a scan."""

    o: Tensor  # ``(time, batch, 32)`` reads after each write
    g: Tensor  # ``(time, batch, 1)`` gate values
    logits: Tensor  # ``(time, batch, 1)``; of `always`, which asks no gate, a large number
    S: Tensor  # ``(batch, 32, 32)`` last matrix
    b: Tensor  # ``(batch, 32)`` last bias memory


def scan(
    model: AuraMem,
    p: Projections,
    S: Tensor,
    b: Tensor,
    choose_gate: GateChooser,
    fresh: Tensor | None = None,
) -> Scanned:
    """Many steps, differentiable, with a gate value that need not be 0 or 1.

    Args:
        model: The policy.
        p: Projections with leading axes ``(time, batch)``.
        S: ``(batch, 32, 32)``.
        b: ``(batch, 32)``.
        choose_gate: From time index and logits ``(batch, 1)`` to gate values ``(batch, 1)``.
        fresh: ``(time, batch)`` bool, where a memory is emptied before the step.
    """
    reads, gates, logits = [], [], []
    overlap = (p.k * p.q).sum(-1, keepdim=True) + model.c2
    for t, step in enumerate(zip(*(part.unbind(0) for part in p), strict=True)):
        now = Projections(*step)
        if fresh is not None and fresh[t].any():
            S = S.masked_fill(fresh[t][:, None, None], 0.0)
            b = b.masked_fill(fresh[t][:, None], 0.0)
        # A third of the time goes into a gate that nobody asks; of other models it is looked at.
        if choose_gate is always and type(model) is AuraMem:
            read, residual = model.read(now, S, b)
            logit = torch.full_like(now.beta, UNASKED)
        else:
            read, residual, logit = model.recall(now, S, b)
        g = choose_gate(t, logit)
        rate = g * now.beta
        keep = 1.0 - LEAK * rate
        change = rate * residual
        reads.append(keep * (read + b) + change * overlap[t])
        S = torch.baddbmm(keep.unsqueeze(-1) * S, now.k.unsqueeze(-1), change.unsqueeze(-2))
        b = keep * b + model.c2 * change
        gates.append(g)
        logits.append(logit)
    return Scanned(torch.stack(reads), torch.stack(gates), torch.stack(logits), S, b)


def always(t: int, logits: Tensor) -> Tensor:
    """Write every step."""
    return torch.ones_like(logits)


def hard_gate(threshold: float | Tensor) -> GateChooser:
    """Open above a threshold, a number or one per row ``(batch, 1)``."""
    return lambda t, logits: opens(logits, threshold).to(logits.dtype)


def drawn(tutored: int = 0) -> GateChooser:
    """Bernoulli draws with a straight-through gradient; open in the first ``tutored`` rows."""

    def choose(t: int, logits: Tensor) -> Tensor:
        p = torch.sigmoid(logits)
        gate = torch.bernoulli(p.detach())
        gate[:tutored] = 1.0
        return gate + p - p.detach()

    return choose
