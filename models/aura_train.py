"""The AURA-Mem recipe: train the policy and the schedules it is compared with.

The loss is the cross-entropy of the action at query steps plus ``write_price`` times the mean
opening probability. Gates are Bernoulli draws with a straight-through gradient, so what a gate
learns is the first-order utility of its write, and it opens where that beats the price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stategate.models.aura import AuraMem, GateChooser
from stategate.models.binding_stream import CONFIGS, NO_LABEL, BindingStreams, World

GateRule = Literal["learned", "always", "random", "periodic"]
Rule = TypeVar("Rule")
PERIOD = 8  # of the periodic schedule; the random one writes with probability 1 / PERIOD


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a checkpoint, apart from library versions.

    Attributes:
        config: Name of a stream configuration.
        gate: How writes are chosen, in training and afterwards.
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
        settle_share: Last share, with the gate frozen and deterministic.
        reset_probability: Chance that a stream starts afresh at a chunk's beginning.
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

    def world(self) -> World:
        """The codes and backbone that this recipe trains in."""
        return World.random(CONFIGS[self.config], self.world_seed)


def always(t: int, logits: Tensor) -> Tensor:
    """Write every step."""
    return torch.ones_like(logits)


def hard_gate(threshold: float | Tensor) -> GateChooser:
    """Open above a threshold, a number or one per row ``(batch, 1)``."""
    return lambda t, logits: (logits > threshold).to(logits.dtype)


def schedule(rule: GateRule, seed: int, threshold: float = 0.0) -> GateChooser:
    """The gate of a trained model, as it is used after training."""
    if rule == "learned":
        return hard_gate(threshold)
    if rule == "always":
        return always
    if rule == "periodic":
        count = iter(range(1 << 62))
        return lambda t, logits: torch.full_like(logits, float(next(count) % PERIOD == 0))
    draws = torch.Generator().manual_seed(seed)
    return lambda t, logits: (torch.rand(logits.shape, generator=draws) < 1 / PERIOD).to(
        logits.dtype
    )


def _bernoulli(t: int, logits: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    return torch.bernoulli(p.detach()) + p - p.detach()


def train(recipe: Recipe, world: World, report: Callable[[int], None] = lambda _: None) -> AuraMem:
    """Train one policy on one thread.

    Args:
        recipe: What to train.
        world: The world it lives in, normally ``recipe.world()``.
        report: Called with the number of iterations done.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: more threads are slower, and sums would differ
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return _train(recipe, world, report)
    finally:
        torch.set_num_threads(threads)


def _train(recipe: Recipe, world: World, report: Callable[[int], None]) -> AuraMem:
    model = AuraMem()
    source = BindingStreams(CONFIGS[recipe.config], world, recipe.streams, recipe.seed + 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    total = recipe.iterations
    warm = int(recipe.always_share * total)
    ramp = max(1, int(recipe.ramp_share * total))
    settle = total - int(recipe.settle_share * total)
    fixed = None if recipe.gate == "learned" else schedule(recipe.gate, recipe.seed)

    def rate(i: int) -> float:
        cosine = 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * i / total)).item())
        return min(1.0, (i + 1) / 50) * (0.03 + 0.97 * cosine)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    S = torch.zeros(recipe.streams, model.d_key, model.d_value)
    b = torch.zeros(recipe.streams, model.d_value)
    for i in range(total):
        fresh = torch.rand(recipe.streams) < (recipe.reset_probability if i >= warm else 1.0)
        source.reset(fresh.numpy())
        S, b = S * ~fresh[:, None, None], b * ~fresh[:, None]
        if i == settle:
            _freeze_gate(model)
        chunk = source.take(recipe.chunk)
        p = model.project(torch.from_numpy(chunk.z))
        learned = always if i < warm else _bernoulli if i < settle else hard_gate(0.0)
        scan = model.scan(p, S, b, fixed or learned)
        asked = torch.from_numpy(chunk.label) != NO_LABEL
        action = model.act(scan.o[asked], p.x[asked])
        loss = cross_entropy(action, torch.from_numpy(chunk.label)[asked])
        if fixed is None and warm <= i < settle:
            price = recipe.write_price * min(1.0, (i - warm) / ramp)
            loss = loss + price * torch.sigmoid(scan.logits).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        S, b = scan.S.detach(), scan.b.detach()
        report(i + 1)
    return model


def _freeze_gate(model: AuraMem) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith("gate_"):
            parameter.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did over streams it never saw.

    Attributes:
        accuracy: Share of queries answered rightly.
        write_rate: Share of steps that wrote.
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


@torch.no_grad()
def evaluate(
    model: AuraMem,
    source: BindingStreams,
    streams: int,
    steps: int,
    gates: Mapping[Rule, GateChooser],
    report: Callable[[int], None] = lambda _: None,
    chunk: int = 256,
) -> dict[Rule, Score]:
    """Score several gate rules side by side on the same streams, from empty memory.

    Args:
        model: The policy.
        source: Held-out streams; they are advanced.
        streams: How many there are.
        steps: Steps of each.
        gates: Rules by name.
        report: Called with the number of steps done after each chunk.
        chunk: Steps taken at a time.
    """
    rules = list(gates.values())
    S = torch.zeros(len(rules) * streams, model.d_key, model.d_value)
    b = torch.zeros(len(rules) * streams, model.d_value)
    right = torch.zeros(len(rules), dtype=torch.float64)
    writes = torch.zeros(len(rules), dtype=torch.float64)
    queries = 0

    def choose(t: int, logits: Tensor) -> Tensor:
        parts = logits.chunk(len(rules))
        return torch.cat([rule(t, part) for rule, part in zip(rules, parts, strict=True)])

    for start in range(0, steps, chunk):
        taken = source.take(min(chunk, steps - start))
        # Rule-major rows: row r * streams + i is stream i under rule r.
        p = model.project(torch.from_numpy(taken.z).repeat(1, len(rules), 1))
        scan = model.scan(p, S, b, choose)
        S, b = scan.S, scan.b
        label = torch.from_numpy(taken.label).repeat(1, len(rules))
        answered = (model.act(scan.o, p.x).argmax(-1) == label) & (label != NO_LABEL)
        right += answered.double().sum(0).view(len(rules), streams).sum(1)
        writes += scan.g.squeeze(-1).double().sum(0).view(len(rules), streams).sum(1)
        queries += int((taken.label != NO_LABEL).sum())
        report(min(start + chunk, steps))
    total = steps * streams
    return {
        name: Score(float(right[i]) / queries, float(writes[i]) / total, queries, total)
        for i, name in enumerate(gates)
    }
