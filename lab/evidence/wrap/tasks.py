"""What is wrapped: recordings and backbones of each kind, and fresh streams to judge on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lab.evidence.wrap.pictures import (
    NO_LABEL,
    VALUES,
    Pictures,
    Rates,
    conv_backbone,
    draw,
    trained_backbone,
)
from stategate.contract import Episode

_TRAINING, _HELD_OUT = (16, 4096), (4, 8192)  # recordings and steps of each
CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
_MISTAKES = 0.02  # share of a policy's own actions that are wrong
_TREMBLE = 0.05  # of an expert's continuous actions


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of wrapping on pictures.

    Attributes:
        title: For the page.
        backbone: From a seed.
        labels: ``expert`` labels questions alone; ``policy`` is what a policy with a growing memory
            did in every frame, mistakes and all; ``numbers`` are continuous actions.
        rates: How often what happens.
    """

    title: str
    backbone: Callable[[int], nn.Module] = conv_backbone
    labels: str = "expert"
    rates: Rates = Rates()


TASKS = {
    "random-backbone": Task("frozen random conv backbone, an expert answers questions"),
    "trained-backbone": Task("conv backbone trained to read cards", trained_backbone),
    "own-actions": Task(
        "every frame labelled by a policy's own actions, 2 % of them wrong", labels="policy"
    ),
    "numbers": Task("continuous actions", labels="numbers"),
    "slow": Task("ten times slower", rates=Rates().slowed(10)),
}


def episodes(task: Task, seed: int) -> list[Episode]:
    """Recordings of a training; the last fifth is held out."""
    recorded = []
    for count, steps, first in ((*_TRAINING, 0), (*_HELD_OUT, 500)):
        pictures = draw(count, steps, 1000 * seed + first, task.rates)
        recorded += [_episode(task, pictures, i, seed) for i in range(count)]
    return recorded


def holdout() -> float:
    """The share of recordings that is held out."""
    return _HELD_OUT[0] / (_TRAINING[0] + _HELD_OUT[0])


def fresh(task: Task, seed: int, streams: int = 8, steps: int = 8192) -> Pictures:
    """Streams that were neither trained on nor held out."""
    return draw(streams, steps, 1000 * seed + 900, task.rates)


def targets(task: Task, answers: NDArray[np.int64]) -> NDArray[Any]:
    """What is right where something is asked for, as the task's labels."""
    if task.labels != "numbers":
        return answers
    return np.where((answers == NO_LABEL)[..., None], 0.0, CORNERS[answers]).astype(np.float32)


def _episode(task: Task, pictures: Pictures, i: int, seed: int) -> Episode:
    x, answer, shown = (part[i] for part in (pictures.x, pictures.answer, pictures.shown))
    rng = np.random.default_rng((seed, i, len(x)))
    if task.labels == "numbers":
        action = targets(task, answer)
        action += _TREMBLE * rng.standard_normal(action.shape).astype(np.float32)
        return Episode({"x": x[:, None], "action": action})
    if task.labels == "policy":
        # It looks at each card, and says of a frame without one what it says of value 0.
        answer = np.where(answer == NO_LABEL, np.maximum(shown, 0) % VALUES, answer)
        wrong = rng.random(len(answer)) < _MISTAKES
        answer = np.where(wrong, rng.integers(VALUES, size=len(answer)), answer)
    return Episode({"x": x[:, None]}, {"action": answer})
