"""How AURA-Mem learns the binding stream, and the schedules that its gate is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lab.training.chunk import Rule, chunk
from lab.training.stream import GateRule, Recipe, Score
from stategate.calibration.gates.scan import GateChooser, Scanned, always, drawn, hard_gate, scan
from stategate.models.memories.aura import AuraMem, Projections
from stategate.models.step import Tensors
from stategate.models.zoo.binding_stream import NO_LABEL, BindingStreams

Named = TypeVar("Named")
PERIOD = 8  # of the periodic schedule; the random one writes with probability 1 / PERIOD


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


class AuraLearner:
    """AURA-Mem under one gate rule.

    Args:
        recipe: Of its training.
        make: Draws the weights; for another size, or another gate.
    """

    def __init__(self, recipe: Recipe, make: Callable[[], AuraMem] = AuraMem) -> None:
        self.module = make()
        self._recipe = recipe
        self._fixed = None if recipe.gate == "learned" else schedule(recipe.gate, recipe.seed)
        self._tutored = round(recipe.tutored_share * recipe.streams)

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        model = self.module
        S = torch.zeros(streams, model.d_key, model.d_value)
        return {"S": S, "b": torch.zeros(streams, model.d_value)}

    def chooser(self, iteration: int) -> GateChooser:
        """How this stage of the training chooses its writes."""
        if self._fixed is not None or iteration < self._recipe.warm:
            return self._fixed or always
        if iteration >= self._recipe.settle:
            return hard_gate(0.0)
        return drawn(self._tutored)

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk with the gates that this stage of the training has."""
        model = self.module
        if iteration == self._recipe.settle:
            _freeze_gate(model)
        p = model.project(z)
        scanned = self._scanned(iteration, p, states["S"], states["b"])
        return (
            lambda queries: model.act(scanned.o[queries], p.x[queries]),
            {"S": scanned.S, "b": scanned.b},
            torch.sigmoid(scanned.logits).mean(),
        )

    def _scanned(self, iteration: int, p: Projections, S: Tensor, b: Tensor) -> Scanned:
        """In C where the gate is AURA-Mem's own."""
        if type(self.module) is not AuraMem:
            return scan(self.module, p, S, b, self.chooser(iteration))
        if self._fixed is not None or iteration < self._recipe.warm:
            nobody_asks = torch.zeros_like(p.beta)
            choose = self.chooser(iteration)
            gates = torch.stack([choose(t, one) for t, one in enumerate(nobody_asks)])
            return chunk(self.module, p, S, b, "given", gates)
        rule: Rule = "hard" if iteration >= self._recipe.settle else "drawn"
        return chunk(self.module, p, S, b, rule, tutored=self._tutored)


def _freeze_gate(model: AuraMem) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith("gate_"):
            parameter.requires_grad_(False)


@torch.no_grad()
def evaluate(
    model: AuraMem,
    source: BindingStreams,
    streams: int,
    steps: int,
    gates: Mapping[Named, GateChooser],
    report: Callable[[int], None] = lambda _: None,
    chunk: int = 256,
) -> dict[Named, Score]:
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
        piece = source.take(min(chunk, steps - start))
        # Rule-major rows: row r * streams + i is stream i under rule r.
        p = model.project(torch.from_numpy(piece.z).repeat(1, len(rules), 1))
        scanned = scan(model, p, S, b, choose)
        S, b = scanned.S, scanned.b
        label = torch.from_numpy(piece.label).repeat(1, len(rules))
        answered = (model.act(scanned.o, p.x).argmax(-1) == label) & (label != NO_LABEL)
        right += answered.double().sum(0).view(len(rules), streams).sum(1)
        writes += scanned.g.squeeze(-1).double().sum(0).view(len(rules), streams).sum(1)
        queries += int((piece.label != NO_LABEL).sum())
        report(min(start + chunk, steps))
    total = steps * streams
    return {
        name: Score(float(right[i]) / queries, float(writes[i]) / total, queries, total)
        for i, name in enumerate(gates)
    }
