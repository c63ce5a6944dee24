"""Streams of pictures in which bindings are shown and asked for, and backbones that see them.

A picture of 16 x 16 pixels shows a card: which of sixteen things it is about (left half) and one of
four values (right half), or a question (the value's half is empty, a mark is set). Four of the
things are asked for; the others look alike and never are. What is shown is the recipe's own task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SIDE, VALUES = 16, 4
_THINGS, _RELEVANT = 16, 4
_NOISE = 0.1
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what happens, as shares of the steps; the rest shows noise."""

    bind: float = 0.06
    repeat: float = 0.04
    distract: float = 0.30
    ask: float = 0.15

    def slowed(self, times: float) -> Rates:
        """The same ten times slower, for one."""
        shares = (self.bind, self.repeat, self.distract, self.ask)
        return Rates(*(share / times for share in shares))


@dataclass(frozen=True, slots=True)
class Pictures:
    """Several streams side by side.

    Attributes:
        x: ``(streams, steps, 1, 16, 16)`` float32.
        answer: ``(streams, steps)`` int64: the value that is asked for, -1 elsewhere.
        shown: ``(streams, steps)`` int64: thing times 4 plus value of a card, -1 without one.
    """

    x: NDArray[np.float32]
    answer: NDArray[np.int64]
    shown: NDArray[np.int64]


def draw(streams: int, steps: int, seed: int, rates: Rates | None = None) -> Pictures:
    """Streams that begin with nothing bound.

    Args:
        streams: How many.
        steps: Of each.
        seed: Of what happens; how things and values look is always the same.
        rates: How often.
    """
    rates = rates or Rates()
    looks = np.random.default_rng(2026)
    things = looks.standard_normal((_THINGS, SIDE, SIDE // 2 - 1)).astype(np.float32)
    values = looks.standard_normal((VALUES, SIDE, SIDE // 2 - 1)).astype(np.float32)
    rng = np.random.default_rng((seed, 17))
    shares = np.cumsum([rates.bind, rates.repeat, rates.distract, rates.ask])
    x = (_NOISE * rng.standard_normal((streams, steps, 1, SIDE, SIDE))).astype(np.float32)
    answer = np.full((streams, steps), NO_LABEL, np.int64)
    shown = np.full((streams, steps), NO_LABEL, np.int64)
    kinds = np.searchsorted(shares, rng.random((streams, steps)))
    for s in range(streams):
        bound: dict[int, int] = {}
        for t in range(steps):
            kind, thing, value = (
                kinds[s, t],
                int(rng.integers(_RELEVANT)),
                int(rng.integers(VALUES)),
            )
            if kind in (1, 3):
                if not bound:
                    continue
                thing = list(bound)[int(rng.integers(len(bound)))]
                value = bound[thing]
            elif kind == 2:
                thing = int(rng.integers(_RELEVANT, _THINGS))
            elif kind == 0:
                if bound.get(thing) == value:  # or it would be a repetition
                    value = (value + 1) % VALUES
                bound[thing] = value
            else:
                continue
            x[s, t, 0, :, : SIDE // 2 - 1] += things[thing]
            if kind == 3:
                x[s, t, 0, :, SIDE // 2 - 1 : SIDE // 2 + 1] += 1.0
                answer[s, t] = value
            else:
                x[s, t, 0, :, SIDE // 2 + 1 :] += values[value]
                shown[s, t] = thing * VALUES + value
    return Pictures(x, answer, shown)


def conv_backbone(seed: int) -> nn.Module:
    """A frozen random net: 64 features of a picture ``(rows, 1, 16, 16)``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Tanh(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Tanh(),
            nn.Flatten(), nn.Linear(32 * 16, 64), nn.Tanh(),
        )  # fmt: skip
        for part in net:
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.normal_(part.weight, std=1.5 / part.weight[0].numel() ** 0.5)
    return net.eval()


def trained_backbone(seed: int, iterations: int = 600) -> nn.Module:
    """The same net, trained to tell what a card shows: as a backbone comes from another task."""
    net = conv_backbone(seed)
    pictures = draw(4, 4096, 50_000 + seed)
    is_card = pictures.shown >= 0
    x, labels = torch.from_numpy(pictures.x[is_card]), torch.from_numpy(pictures.shown[is_card])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(64, _THINGS * VALUES)
        optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(iterations):
            at = torch.randint(len(x), (256,))
            loss = nn.functional.cross_entropy(head(net(x[at])), labels[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimiser.step()
    return net.eval()
