"""A matrix memory: read with a few rows, written by outer products; at once, or deferred.

Every memory that only decays and adds outer products has one algebra, with S (key, value):

    S <- Diag(d) S + k u^T           d between 0 and 1, one number or one for each key channel;
                                     k and u are one row each, or a few where a step updates often

`Plain` does that in every write. `Waiting` leaves S alone and keeps (d, k, u) of the last writes in
a ring. With S_0 the matrix of the last fold, and everything multiplied from the newest row back,

    w_i = d_now d_n ... d_(i+1)      what row i has decayed by since
    q^T S = (q w_0)^T S_0 + sum_i ((q w_i)^T k_i) u_i^T

Only products of decays occur, so nothing overflows and nothing cancels however fast a head forgets:
what underflows has been forgotten. Every L-th write folds the rows, and its own, into S_0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ring:
    """What waits for one matrix or several that are written with the same values.

    Attributes:
        name: Of the state.
        heads: Of each row.
        decay: Decays of a head in one row.
        value: Values of a head.
        parts: Key channels of a head, by the state that they are folded into.
        value_first: Whether the last two axes of those states are value and key.
        updates: Outer products of one write; several go with one part.
    """

    name: str
    heads: int
    decay: int
    value: int
    parts: Mapping[str, int]
    value_first: bool = False
    updates: int = 1

    @property
    def width(self) -> int:
        """Numbers of a head in one row."""
        return self.decay + self.updates * (sum(self.parts.values()) + self.value)


class Deferred(NamedTuple):
    """What a write leaves while it waits.

    Attributes:
        folded: ``(rows, heads, key, value)``: S as it is if this write folds the ring.
        row: ``(rows, heads, decay + key + value)``: what is appended if it does not.
    """

    folded: Tensor
    row: Tensor


class Matrix(Protocol):
    """What a step does with its matrix."""

    def read(self, queries: Tensor, decay: Tensor) -> Tensor:
        """Rows of a product with the decayed matrix, ``(rows, heads, queries, value)``.

        Args:
            queries: ``(rows, heads, queries, key)``.
            decay: ``(rows, heads, key or 1)``.
        """
        ...

    def after(self, decay: Tensor, k: Tensor, u: Tensor, is_open: Tensor) -> Any:
        """What is there after this step; of a closed head bit for bit what was.

        Args:
            decay: ``(rows, heads, key or 1)``.
            k: ``(rows, heads, key)``, or ``(rows, heads, updates, key)``.
            u: ``(rows, heads, value)``, or ``(rows, heads, updates, value)``.
            is_open: ``(rows, heads, 1)`` bool.
        """
        ...


def matrix_of(state: object) -> Matrix:
    """A state that is a matrix: a tensor is `Plain`, and `Waiting` stays what it is."""
    if isinstance(state, Waiting):
        return state
    assert isinstance(state, Tensor)
    return Plain(state)


@dataclass(frozen=True, slots=True)
class Plain:
    """A matrix that every write replaces: ``(rows, heads, key, value)``."""

    S: Tensor

    def read(self, queries: Tensor, decay: Tensor) -> Tensor:
        """See `Matrix.read`."""
        return torch.matmul(queries * decay.unsqueeze(-2), self.S)

    def after(self, decay: Tensor, k: Tensor, u: Tensor, is_open: Tensor) -> Tensor:
        """See `Matrix.after`."""
        several = k.dim() == self.S.dim()
        added = torch.matmul(k.mT, u) if several else k.unsqueeze(-1) * u.unsqueeze(-2)
        return torch.where(is_open.unsqueeze(-1), decay.unsqueeze(-1) * self.S + added, self.S)


def norm_of(k: Tensor, u: Tensor) -> Tensor:
    """Frobenius norm of ``k^T u``, ``(...,)``: what a memory lacks that skips this write.

    It has a floor of 1e-6, because rounding must not close a gate at the threshold 0.

    Args:
        k: ``(..., updates, key)``.
        u: ``(..., updates, value)``.
    """
    # A product that erases what another writes leaves little: squares of both would hide it, so
    # what two keys have in common is summed over their values first.
    square = torch.zeros_like(u[..., 0, 0])
    for _ in range(k.shape[-2] - 1):
        first, k = k[..., :1, :], k[..., 1:, :]
        own, u = u[..., :1, :], u[..., 1:, :]
        length = (first * first).sum((-1, -2), keepdim=True)
        along = torch.matmul(k, first.mT) / length.clamp(min=1e-30)
        own = own + (along * u).sum(-2, keepdim=True)
        k = k - along * first
        square = square + (length * own * own).sum((-1, -2))
    last = (k * k).sum((-1, -2)) * (u * u).sum((-1, -2))
    return torch.sqrt(square + last + 1e-12)


class Waiting:
    """A matrix and the rows that wait to be folded into it; read and written as `Plain` is.

    Args:
        S: ``(rows, heads, key, value)``, as of the last fold.
        ring: ``(rows, length, heads, decay + key + value)``, the oldest row first.
        count: ``(rows,)``, how many rows of it are meant.
        updates: Outer products of each row.
    """

    def __init__(self, S: Tensor, ring: Tensor, count: Tensor, updates: int = 1) -> None:
        key, value = updates * S.shape[-2], updates * S.shape[-1]
        length = ring.shape[1]
        places = torch.arange(length, dtype=count.dtype, device=count.device)
        waits = (places < count.unsqueeze(-1)).view(-1, 1, length, 1)
        # What lies behind the rows that wait is left from before.
        widths = [ring.shape[-1] - key - value, key, value]
        decay, k, u = torch.split(ring.transpose(1, 2), widths, dim=-1)
        decay = torch.where(waits, decay, 1.0)
        later = _products_behind(decay)
        self._decay = later[:, :, 0] * decay[:, :, 0]  # of S since its last fold
        if updates > 1:  # the products of a row have decayed alike
            k, u = (torch.unflatten(x, -1, (updates, -1)).flatten(2, 3) for x in (k, u))
            later, waits = (x.repeat_interleave(updates, dim=2) for x in (later, waits))
        self._waits = waits.transpose(-1, -2)
        self._S, self._k, self._u = S, k * later, u

    def read(self, queries: Tensor, decay: Tensor) -> Tensor:
        """See `Matrix.read`."""
        queries = queries * decay.unsqueeze(-2)
        weights = torch.matmul(queries, self._k.transpose(-1, -2))
        waiting = torch.matmul(torch.where(self._waits, weights, 0.0), self._u)
        return torch.matmul(queries * self._decay.unsqueeze(-2), self._S) + waiting

    def after(self, decay: Tensor, k: Tensor, u: Tensor, is_open: Tensor) -> Deferred:
        """See `Matrix.after`; a closed head appends a row that changes nothing."""
        if k.dim() < self._S.dim():
            k, u = k.unsqueeze(-2), u.unsqueeze(-2)
        decay = torch.where(is_open, decay, 1.0)
        u = torch.where(is_open.unsqueeze(-1), u, 0.0)
        keys = torch.cat((self._k * decay.unsqueeze(-2), k), dim=-2)
        us = torch.where(self._waits.transpose(-1, -2), self._u, 0.0)
        us = torch.cat((us, u), dim=-2)
        waiting = torch.matmul(keys.transpose(-1, -2), us)
        folded = (self._decay * decay).unsqueeze(-1) * self._S + waiting
        return Deferred(folded, torch.cat((decay, k.flatten(-2), u.flatten(-2)), dim=-1))


def _products_behind(x: Tensor) -> Tensor:
    """For each row the product of all rows behind it, ``(..., length, channels)``.

    Row by row: in C that is one loop over channels with the product in a register.
    """
    products = [torch.ones_like(x[..., :1, :])]
    rows = torch.split(x, [1] * x.shape[-2], dim=-2)
    for row in reversed(rows[1:]):
        products.append(products[-1] * row)
    return torch.cat(products[::-1], dim=-2)
