"""Training on the endless binding stream: one loop, whatever the memory.

The loss is the cross-entropy of the answer at query steps plus a price on writing. Streams are
followed chunk by chunk; the memory is carried from one to the next, its gradient is not. Training
begins with every chunk on a fresh memory, and without a price: a gate that may close before the
memory works closes for ever. For the same reason a share of the streams can go on being written
always (`Recipe.tutored_share`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stategate.calibration.gates.descent import descend, reproducible
from stategate.models.step import Tensors
from stategate.models.zoo.binding_stream import CONFIGS, NO_LABEL, BindingStreams, World

GateRule = Literal["learned", "always", "random", "periodic", "soft"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a checkpoint, apart from library versions.

    Attributes:
        config: Name of a stream configuration.
        gate: How writes are chosen, in training and afterwards; ``soft``: every step writes, by as
            much as its gates say.
        seed: Of the weights, the gate draws and the streams.
        world_seed: Of the codes and the frozen backbone.
        iterations: Optimiser steps.
        streams: Parallel streams in a batch.
        chunk: Steps back-propagated through; the state is carried over, its gradient is not.
        learning_rate: Peak; cosine down to 3 % after 50 steps of warm-up.
        write_price: Price of a certain write (lambda).
        always_share: First share of training, always writing from fresh states: a gate that may
            close before the memory works closes for ever.
        ramp_share: Next share, over which the write price grows from zero.
        settle_share: Last share, with the gate frozen and deterministic; not for ``soft``.
        reset_probability: Chance that a stream starts afresh at a chunk's beginning.
        tutored_share: Share of streams in which a gate that is drawn stays open, so that the cell
            goes on learning from what the gate leaves out elsewhere: what is never written is
            never answered, and nothing then says what its write would be worth.
    """

    config: str = "hard"
    gate: GateRule = "learned"
    seed: int = 0
    world_seed: int = 2026
    iterations: int = 2000
    streams: int = 48
    chunk: int = 64
    learning_rate: float = 4e-3
    write_price: float = 0.5
    always_share: float = 0.2
    ramp_share: float = 0.2
    settle_share: float = 0.15
    reset_probability: float = 0.1
    tutored_share: float = 0.0

    def world(self) -> World:
        """The codes and backbone that this recipe trains in."""
        return World.random(CONFIGS[self.config], self.world_seed)

    @property
    def warm(self) -> int:
        """Iterations on fresh memories and without a price."""
        return int(self.always_share * self.iterations)

    @property
    def settle(self) -> int:
        """First iteration with the gate frozen."""
        return self.iterations - int(self.settle_share * self.iterations)

    def price(self, iteration: int) -> float:
        """Of a certain write in this iteration; none where writes are not learned."""
        if self.gate not in ("learned", "soft") or iteration >= self.settle:
            return 0.0
        ramp = max(1, int(self.ramp_share * self.iterations))
        return self.write_price * min(1.0, max(0.0, (iteration - self.warm) / ramp))


class Learner(Protocol):
    """A memory as the loop sees it."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def start(self, streams: int) -> Tensors:
        """Empty memories, ``(streams, ...)`` each."""
        ...

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk.

        Args:
            iteration: Of the training.
            z: Features ``(time, streams, 64)``.
            states: Before it.

        Returns:
            What gives the answers' logits ``(asked, 8)`` for a mask ``(time, streams)``; the states
            after the chunk; and the mean chance of a write, which is priced.
        """
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did over streams it never saw.

    Attributes:
        accuracy: Share of queries answered rightly.
        write_rate: Share of steps that wrote; of a gate of several elements, their mean.
        queries: Answers that were judged.
        steps: Steps of all streams together.
    """

    accuracy: float
    write_rate: float
    queries: int
    steps: int

    @property
    def write_ratio(self) -> float:
        """Steps per write."""
        return 1.0 / self.write_rate if self.write_rate else float("inf")


def train(
    learner: Callable[[Recipe], Learner],
    recipe: Recipe,
    world: World,
    report: Callable[[int], None] = lambda _: None,
) -> nn.Module:
    """Train on one thread, leaving the caller's random numbers alone.

    Args:
        learner: Makes the memory, with weights drawn from torch's generator.
        recipe: What to train.
        world: The world it lives in, normally ``recipe.world()``.
        report: Called with the number of iterations done.

    Raises:
        CalibrationError: The loss is no number any more.
    """
    with reproducible(recipe.seed):
        return _train(learner(recipe), recipe, world, report)


def _train(
    learner: Learner, recipe: Recipe, world: World, report: Callable[[int], None]
) -> nn.Module:
    source = BindingStreams(CONFIGS[recipe.config], world, recipe.streams, recipe.seed + 1)
    states = learner.start(recipe.streams)

    def rate(i: int) -> float:
        cosine = 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * i / recipe.iterations)).item())
        return min(1.0, (i + 1) / 50) * (0.03 + 0.97 * cosine)

    def loss_of(i: int) -> Tensor:
        nonlocal states
        often = recipe.reset_probability if i >= recipe.warm else 1.0
        fresh = torch.rand(recipe.streams) < often
        source.reset(fresh.numpy())
        states = {
            name: state * ~fresh.view(-1, *[1] * (state.ndim - 1)) for name, state in states.items()
        }
        chunk = source.take(recipe.chunk)
        answer, after, writes = learner.run(i, torch.from_numpy(chunk.z), states)
        states = {name: state.detach() for name, state in after.items()}
        label = torch.from_numpy(chunk.label)
        queries = label != NO_LABEL
        loss = cross_entropy(answer(queries), label[queries])
        price = recipe.price(i)
        return loss + price * writes if price else loss

    descend(
        list(learner.module.parameters()),
        loss_of,
        iterations=recipe.iterations,
        learning_rate=recipe.learning_rate,
        rate=rate,
        remedy="a smaller learning rate; or more steps, so that one of them is a query",
        report=report,
    )
    return learner.module.eval()
