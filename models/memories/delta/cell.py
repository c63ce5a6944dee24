"""One recurrence for the delta family, by the step and by the chunk.

For each head, with state S (key, value), log-decay g <= 0, erase gate b and write gate w:

    S <- Diag(exp g) S                 decay
    u  = w v - (b k)^T S               what is missing at this key
    S <- S + k u^T                     the write, of Frobenius norm |u| because |k| = 1
    o  = S^T q / sqrt(key_dim)         read after the write

Gated DeltaNet and KDA have b = w = beta (arXiv:2412.06464, arXiv:2510.26692); Gated DeltaNet-2 has
vectors (arXiv:2605.22791, section 3).

Decay is not a write. The log-decay since the last write is carried as G and folded into the reads,
so a skipped write leaves every byte of S alone and nothing is lost:

    r = (b k exp(G + g))^T S,  o = (q exp(G + g))^T S + (q.k) u,
    written:  S <- Diag(exp(G + g)) S + k u^T, G <- 0;    skipped:  S <- S, G <- G + g

All exponents are sums of log-decays and so never above zero: nothing overflows.

Gated DeltaProduct (arXiv:2502.10297) decays once and then writes n times, each write correcting
what those before it left. All n are one write of rank n, with u_j = b_j (v_j - k_j^T S), S after
j - 1 of them, and need one pass over the matrix:

    u_j = b_j v_j - (b_j k_j exp(G + g))^T S - sum_{i<j} b_j (k_j.k_i) u_i
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stategate.models.memories.matrix import matrix_of, norm_of
from stategate.models.step import opens

CHUNK = 16
"""Tokens of a chunk: errors grow with its length. At 16 they stay below 1e-6 for erase gates up to
1, and below 2e-5 of the values for gates near 2 and a key that never changes."""


class Tokens(NamedTuple):
    """What the projections make of an observation; leading axes (rows,) or (rows, time).

    Of several updates in a step, k, v, b and w have an axis more, behind the heads.

    Attributes:
        q: ``(..., heads, key)`` of unit length.
        k: ``(..., heads, key)`` of unit length.
        v: ``(..., heads, value)``.
        g: Log-decay ``(..., heads, key or 1)``.
        b: Erase gate ``(..., heads, key or 1)``.
        w: Write gate ``(..., heads, value or 1)``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    b: Tensor
    w: Tensor


class Carried(NamedTuple):
    """The memory of one layer.

    Attributes:
        S: ``(rows, heads, key, value)``; a value-first state is transposed outside. In
            deferred form a `Waiting` before a step, and a `Deferred` after it.
        log_decay: ``(rows, heads, key or 1)``, the sum of log-decays since the last write.
    """

    S: Tensor
    log_decay: Tensor


class Written(NamedTuple):
    """What a step or a chunk gives.

    Attributes:
        o: Reads ``(..., heads, value)``.
        carried: The memory after it.
        gate: ``(..., heads)``, open where above the threshold.
    """

    o: Tensor
    carried: Carried
    gate: Tensor


def largest_gate(tokens: Tokens) -> Tensor:
    """The gate that needs no memory: the largest erase or write gate of a head, ``(..., heads)``.

    Both have to be small for a skip: w near 0 with b near 1 erases.
    """
    largest = torch.maximum(tokens.b.amax(-1), tokens.w.amax(-1))
    return largest.amax(-1) if tokens.k.dim() > tokens.q.dim() else largest


def step(tokens: Tokens, carried: Carried, threshold: Tensor, skip_by: str) -> Written:
    """One token for every row.

    Args:
        tokens: Leading axes ``(rows,)``.
        carried: The memory before it.
        threshold: ``(1,)``.
        skip_by: See `DeltaConfig`.
    """
    q, k, v, g, b, w = tokens
    matrix, log_decay = matrix_of(carried.S), carried.log_decay + g
    decay = torch.exp(log_decay)
    several = k.dim() > q.dim()
    # All reads in one pass over the matrix.
    if several:
        reads = matrix.read(torch.cat((b * k, q.unsqueeze(-2)), dim=-2), decay)
        read = reads[..., -1, :]
        u = _in_turn(w * v - reads[..., :-1, :], b * k, k)
        own = torch.matmul(torch.matmul(q.unsqueeze(-2), k.mT), u).squeeze(-2)
    else:
        erased, read = matrix.read(torch.stack((b * k, q), dim=-2), decay).unbind(-2)
        u = w * v - erased
        own = (q * k).sum(-1, keepdim=True) * u
    if skip_by == "gate":
        gate = largest_gate(tokens)
    else:
        gate = norm_of(k, u) if several else torch.sqrt((u * u).sum(-1))
    is_open = opens(gate, threshold).unsqueeze(-1)
    o = k.shape[-1] ** -0.5 * (read + torch.where(is_open, own, 0.0))
    after = Carried(
        matrix.after(decay, k, u, is_open),
        torch.where(is_open, torch.zeros_like(log_decay), log_decay),
    )
    return Written(o, after, gate)


def _in_turn(u: Tensor, erasing: Tensor, k: Tensor) -> Tensor:
    """Updates ``(rows, heads, updates, value)``, each of which sees those before it."""
    overlap = torch.matmul(erasing, k.mT)
    done = [u[..., :1, :]]
    for j in range(1, u.shape[-2]):
        before = torch.matmul(overlap[..., j : j + 1, :j], torch.cat(done, dim=-2))
        done.append(u[..., j : j + 1, :] - before)
    return torch.cat(done, dim=-2)


def chunk(tokens: Tokens, carried: Carried, threshold: Tensor, valid: Tensor) -> Written:
    """Up to `CHUNK` tokens for every row, by matrix products and no loop over time.

    With c the running sum of log-decays, the updates solve (I + T) U = W V - Y S with
    T_ij = (b_i k_i exp(c_i - c_j)) . k_j below the diagonal and Y_i = b_i k_i exp(c_i)
    (arXiv:2605.22791, appendix A), where exponents are summed pair by pair so that none is above
    zero.

    Args:
        tokens: Leading axes ``(rows, time)``.
        carried: The memory before the first of them.
        threshold: ``(1,)``, of the gate `largest_gate`.
        valid: ``(rows, time)`` bool; tokens after the last valid one are padding and change
            nothing.

    Returns:
        Reads and gates for each token, and the memory after the last valid one.
    """
    gate = largest_gate(tokens)
    is_open = opens(gate, threshold) & valid.unsqueeze(-1)
    updates = tokens.k.shape[-2] if tokens.k.dim() > tokens.q.dim() else 1
    if updates > 1:
        tokens = _one_update_each(tokens)
        is_open, valid = (x.repeat_interleave(updates, dim=1) for x in (is_open, valid))
    q, k, v, g, b, w = (part.transpose(1, 2) for part in tokens)  # (rows, heads, time, ...)
    open_rows = is_open.transpose(1, 2).unsqueeze(-1)
    b, wv = torch.where(open_rows, b, 0.0), torch.where(open_rows, w * v, 0.0)
    g = torch.where(valid[:, None, :, None], g, 0.0)
    before = carried.log_decay.unsqueeze(2)
    total = torch.cumsum(g, dim=2)
    times = torch.arange(q.shape[2], device=q.device)
    past = times[:, None] >= times[None, :]
    # Sums of g over j < t <= i, (rows, heads, i, j, key or 1); a difference of running sums would
    # lose the digits of a slow decay beside a fast one.
    between = past[:, None, :] & (times[None, :, None] < times)
    pair = torch.matmul(between.flatten(0, 1).to(g.dtype), g)
    pair = pair.view(*g.shape[:2], *past.shape, g.shape[-1])
    aged = k.unsqueeze(2) * (torch.exp(pair) * past[..., None])  # key j as seen from token i
    T = ((b * k).unsqueeze(3) * aged).sum(-1) * (times[:, None] > times[None, :])
    reads = torch.exp(before + total)
    U = torch.matmul(_inverse_of_unit_plus(T), wv - torch.matmul(b * k * reads, carried.S))
    o = torch.matmul(q * reads, carried.S)
    o = o + torch.matmul((q.unsqueeze(3) * aged).sum(-1), U)
    # The last write takes the decay so far into S; what comes after it is carried, as by steps.
    latest = (open_rows * times[:, None]).amax(dim=2, keepdim=True)  # (rows, heads, 1, 1)
    at_latest = times[:, None] == latest  # (rows, heads, time, 1)
    until_write = (total * at_latest).sum(dim=2, keepdim=True)
    keys = (aged * at_latest.unsqueeze(-1)).sum(dim=2)
    written = torch.exp(before + until_write).transpose(2, 3) * carried.S + torch.matmul(
        keys.transpose(2, 3), U
    )
    any_open = is_open.any(dim=1)[..., None]
    after = Carried(
        torch.where(any_open.unsqueeze(-1), written, carried.S),
        torch.where(
            any_open,
            (g * (times[:, None] > latest)).sum(dim=2),
            carried.log_decay + total[:, :, -1],
        ),
    )
    o = o.transpose(1, 2)[:, updates - 1 :: updates]  # a step reads after its last update
    return Written(o * k.shape[-1] ** -0.5, after, gate)


def _one_update_each(tokens: Tokens) -> Tokens:
    """Tokens of one update each in place of tokens of several; the first of a step decays."""
    q, k, v, g, b, w = tokens
    updates = k.shape[-2]
    q = q.repeat_interleave(updates, dim=1)
    g = torch.stack([g] + [torch.zeros_like(g)] * (updates - 1), dim=2).flatten(1, 2)
    k, v, b, w = (x.transpose(2, 3).flatten(1, 2) for x in (k, v, b, w))
    return Tokens(q, k, v, g, b, w)


def _inverse_of_unit_plus(T: Tensor) -> Tensor:
    """(I + T)^-1 for strictly lower triangular T, block by block.

    With X the inverse of the diagonal blocks and C what lies below them in blocks of twice the
    size, X - X C X is the inverse of those. Powers of T, which cancel each other where keys
    repeat, are never formed.
    """
    at = torch.arange(T.shape[-1], device=T.device)
    inverse = torch.eye(T.shape[-1], device=T.device)
    size = 1
    while size < T.shape[-1]:
        pair = at // (2 * size)
        below = (at // size % 2 == 1)[:, None] & (at // size % 2 == 0)[None, :]
        C = T * (below & (pair[:, None] == pair[None, :]))
        inverse = inverse - torch.matmul(inverse, torch.matmul(C, inverse))
        size *= 2
    return inverse
