"""What the zoo knows of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stategate.contract import Episode, StepSpec
from stategate.models.step import StepModel


class Sized(Protocol):
    """A configuration whose memory is known without its weights."""

    def step_spec(self) -> StepSpec:
        """Signature of one step."""
        ...


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One model that can be exported by name.

    Attributes:
        name: For the command line.
        family: Kind of memory.
        summary: What it does, in one line.
        write: What counts as a write.
        paper: Where the memory is published.
        weights: ``trained``, or ``seeded``: drawn at random, to be looked at and measured.
        build: Makes the model.
        episode: Makes a held-out episode of so many steps, from a seed.
        published: Published configurations of the family by name.
    """

    name: str
    family: str
    summary: str
    write: str
    paper: str
    weights: Literal["trained", "seeded"]
    build: Callable[[], StepModel]
    episode: Callable[[int, int], Episode]
    published: Mapping[str, Sized] = field(default_factory=dict)
