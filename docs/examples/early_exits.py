"""A network with early exits, as one bundle for each segment and a gate on the host.

After JEI-DNN (arXiv:2310.09163): behind each segment is a head, and a gate that looks at how sure
that head is. The first segment that the gate lets go gives the answer; those behind it are not
computed, and keep what they remember.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.models.step import StepResult, Tensors
from stategate.runtime import Session

WIDTH, CLASSES = 16, 4


class Segment(nn.Module):
    """A layer with a memory, a head, and a gate that says how willingly it lets the head answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.gate = nn.Linear(4, 1)

    def step_spec(self) -> StepSpec:
        """Takes what the segment before gives as ``hidden``."""
        row = TensorSpec("x", (1, WIDTH))
        return StepSpec(
            inputs=(row,),
            outputs=(
                TensorSpec("hidden", (1, WIDTH)),
                TensorSpec("y", (1, CLASSES)),
                TensorSpec("leave", (1, 1)),
            ),
            states=(StateSpec("h", (1, WIDTH)),),
        )

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step of the segment."""
        h = self.layer(inputs["x"], states["h"])
        y = self.head(h)
        leave = torch.sigmoid(self.gate(certainty(y)))
        return StepResult({"hidden": h + inputs["x"], "y": y, "leave": leave}, {"h": h}, {})


def certainty(y: Tensor) -> Tensor:
    """Four numbers of a head's answer ``(rows, classes)``: ``(rows, 4)``.

    The greatest probability, the entropy, the margin of the two greatest probabilities, and the
    entropy of the squared probabilities after they are made to sum to 1.
    """
    p = torch.softmax(y, dim=-1)
    first, second = torch.topk(p, 2, dim=-1).values.split(1, dim=-1)
    sharp = p * p / (p * p).sum(-1, keepdim=True)
    entropies = (-(q * torch.log(q + 1e-12)).sum(-1, keepdim=True) for q in (p, sharp))
    return torch.cat((first, next(entropies), first - second, next(entropies)), dim=-1)


def leaves_at(willing: Sequence[float]) -> bool:
    """Whether the last of the segments that are computed answers, by the rule of JEI-DNN.

    Args:
        willing: Gates of all segments computed so far, each from 0 to 1.
    """
    remaining, share = 1.0, 0.0  # what has not gone yet, and how much of that goes here
    spent = 0.0  # what the gates before have asked for
    for gate in willing:
        share = min(max(max(0.0, min(gate, 1.0 - spent)) / max(remaining, 1e-12), 0.0), 1.0)
        remaining, spent = remaining * (1.0 - share), spent + gate
    return share >= 0.5


def step(segments: Sequence[Session], x: object) -> tuple[int, Mapping[str, object]]:
    """One step of as many segments as it takes: which one answered, and its outputs."""
    willing: list[float] = []
    for place, session in enumerate(segments):
        outputs = session.step(x=x)  # type: ignore[arg-type]
        willing.append(float(outputs["leave"].item()))
        if leaves_at(willing) or place == len(segments) - 1:
            break
        x = outputs["hidden"]
    return place, outputs
