"""The memory that grows: attention over everything seen, 256 bytes more in each step.

It cannot be a bundle, whose states have fixed shapes; it is trained as the others are and stepped
here. One head of 32: q and k of unit length, score = s q.k - m (i - j), with learned sharpness s
and recency slope m (arXiv:2108.12409), softmax, and the cell's head over [read, x].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu, softplus

from lab.training.stream import Recipe
from stategate.models.step import Tensors
from stategate.models.zoo.binding_stream import FEATURES, VALUES

_WIDTH, _KEY = 64, 32
_BLOCK = 256  # queries answered at a time


class GrowingCache(nn.Module):
    """Attention with a key-value cache of every step so far.

    Attributes:
        kv_bytes_per_step: One float32 key and value.
    """

    family = "attention"
    kv_bytes_per_step = 4 * 2 * _KEY

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(FEATURES, _WIDTH)
        self.to_qkv = nn.Linear(_WIDTH, 3 * _KEY)
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.slope = nn.Parameter(torch.tensor(-4.0))
        self.head = nn.Sequential(
            nn.Linear(_KEY + _WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, VALUES)
        )

    def project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(..., 64)`` to x, q, k, v."""
        x = silu(self.encode(z))
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return x, normalize(q, dim=-1), normalize(k, dim=-1), v

    def attend(self, q: Tensor, at: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Read for queries ``(rows, asked, 32)`` made at steps ``at (asked,)``, themselves seen."""
        ago = at[:, None] - torch.arange(k.shape[1])
        score = self.sharpness * torch.matmul(q, k.transpose(1, 2)) - softplus(self.slope) * ago
        score = score.masked_fill(~self.visible(at, ago), float("-inf"))
        return torch.matmul(torch.softmax(score, -1), v)

    def visible(self, at: Tensor, ago: Tensor) -> Tensor:
        """Which steps are attended to: all up to the query, ``(asked, steps)`` bool."""
        return ago >= 0

    def answer(self, o: Tensor, x: Tensor) -> Tensor:
        """Logits ``(..., 8)``."""
        logits: Tensor = self.head(torch.cat((o, x), dim=-1))
        return logits


class FrameSampling(GrowingCache):
    """The same attention over evenly spaced steps of the past, the first and the query included.

    16 of them are as many bytes of keys and values as AURA-Mem's matrix.
    """

    frames = 16

    def visible(self, at: Tensor, ago: Tensor) -> Tensor:
        """Which steps are sampled."""
        places = torch.round(at[:, None] * torch.linspace(0, 1, self.frames)).long()
        return torch.zeros(ago.shape, dtype=torch.bool).scatter_(1, places, True)


class CacheLearner:
    """Attention over a chunk that begins empty: what a cache can be trained on in memory."""

    def __init__(self, recipe: Recipe) -> None:
        self.module = GrowingCache()

    def start(self, streams: int) -> Tensors:
        """Nothing is carried from one chunk to the next."""
        return {}

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        model = self.module
        x, q, k, v = (part.transpose(0, 1) for part in model.project(z))
        y = model.answer(model.attend(q, torch.arange(len(z)), k, v), x).transpose(0, 1)
        return lambda queries: y[queries], {}, torch.zeros(())


@torch.no_grad()
def answers(model: GrowingCache, z: Tensor, queries: Tensor) -> Tensor:
    """What the cache answers in one stream, as stepping it would: each query sees its past.

    Args:
        model: The trained attention.
        z: ``(time, 64)``, from an empty cache.
        queries: Increasing steps ``(queries,)``; only they are attended from, for the read of other
            steps changes nothing.

    Returns:
        Chosen actions ``(queries,)``.
    """
    if not len(queries):  # a short stream may ask nothing
        return queries
    x, q, k, v = model.project(z)
    chosen = []
    for at in torch.split(queries, _BLOCK):
        so_far = slice(0, int(at[-1]) + 1)
        o = model.attend(q[None, at], at, k[None, so_far], v[None, so_far])[0]
        chosen.append(model.answer(o, x[at]).argmax(-1))
    return torch.cat(chosen)
