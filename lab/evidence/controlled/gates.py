"""AURA-Mem's cell under gates that it is compared with, and ablations of its own gate.

All keep the cell of `stategate.models.memories.aura`; what differs is what the gate looks at, and
what it was trained for. A gate that nothing trains opens above a quantile of its own values, so
that it writes as often as the schedules do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lab.training.aura import PERIOD, AuraLearner
from lab.training.stream import Recipe
from stategate.calibration.gates.scan import GateChooser, always, hard_gate, scan
from stategate.contract import StepSpec, TensorSpec
from stategate.models.memories.aura import AuraMem, Projections, Recall
from stategate.models.step import StepResult, Tensors

BUDGET = 1.0 / PERIOD
"""Share of steps that untrained gates and schedules may write."""
ALWAYS, NEVER = -3.0e38, 3.0e38  # thresholds below and above every gate value
_SMOOTHING = 0.1  # share of a chunk's quantile in the running threshold


class Blind(AuraMem):
    """Ablation: the gate sees the observation, not what the memory makes of it."""

    def recall(self, p: Projections, S: Tensor, b: Tensor) -> Recall:
        """As the cell's, with a gate from the observation alone."""
        return super().recall(p, S, b)._replace(gate=self.gate_out(silu(p.novelty)))


class Soft(AuraMem):
    """Ablation: the gate scales a write instead of choosing it, so every step writes."""

    def step_spec(self) -> StepSpec:
        """The cell's, without a hard gate."""
        spec = super().step_spec()
        states = tuple(msgspec.structs.replace(s, gate=None) for s in spec.states)
        return StepSpec(spec.inputs, spec.outputs, states, ())

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One write of size ``sigmoid(gate)``."""
        z = inputs["z"].unsqueeze(0)
        p = self.project(z)
        scanned = scan(self, p, states["S"], states["b"], soft)
        return StepResult(
            {"action": self.act(scanned.o[0], p.x[0])}, {"S": scanned.S, "b": scanned.b}, {}
        )


class Surprise(AuraMem):
    """Opens where the memory's prediction of the value is worst: no action signal at all."""

    def recall(self, p: Projections, S: Tensor, b: Tensor) -> Recall:
        """As the cell's; the gate is the log of the mean squared residual."""
        recall = super().recall(p, S, b)
        squared = recall.residual.detach().square().mean(-1, keepdim=True)
        return recall._replace(gate=torch.log(squared + 1e-3))


class Reconstruction(AuraMem):
    """Opens where remembering this observation would make it easier to reconstruct.

    A decoder predicts the feature z from a value. The gain is the fall of its mean squared error
    when what the memory holds at this key is replaced by this step's value. The step size beta is
    left out of it: it is trained on actions, and would tell the gate what they need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(self.d_value, 64), nn.SiLU(), nn.Linear(64, self.d_model)
        )

    def project(self, z: Tensor) -> Projections:
        """As the cell's; the gate's view of the observation is the observation."""
        return super().project(z)._replace(novelty=z)

    def recall(self, p: Projections, S: Tensor, b: Tensor) -> Recall:
        """As the cell's; the gate is the gain."""
        keyed, read = torch.bmm(torch.stack((p.k, p.q), dim=1), S).unbind(1)
        residual = p.v - keyed - b
        with torch.no_grad():
            gain = self.error(p, p.v - residual) - self.error(p, p.v)
        return Recall(read, residual, gain)

    def error(self, p: Projections, value: Tensor) -> Tensor:
        """Mean squared error ``(..., 1)`` of the observation decoded from ``(..., 32)``."""
        wrong: Tensor = self.decoder(value.detach()) - p.novelty
        return wrong.square().mean(-1, keepdim=True)


class Scheduled(AuraMem):
    """Writes when its caller says: the schedule is an input, so that the ledger counts it."""

    def step_spec(self) -> StepSpec:
        """The cell's, with ``write (1, 1)``, which is the gate: open above 0.5."""
        spec = super().step_spec()
        gate = msgspec.structs.replace(spec.gates[0], threshold=0.5)
        inputs = (*spec.inputs, TensorSpec("write", (1, 1)))
        return StepSpec(inputs, spec.outputs, spec.states, (gate,))

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """The cell's step, with a threshold that no gate value reaches, or every one."""
        forced = torch.where(inputs["write"] > inputs["threshold"], ALWAYS, NEVER)
        result = super().step({"z": inputs["z"], "threshold": forced}, states)
        return result._replace(gates={"gate": inputs["write"]})


def soft(t: int, logits: Tensor) -> Tensor:
    """A write of any size."""
    return torch.sigmoid(logits)


class SoftLearner(AuraLearner):
    """The soft gate, priced as the hard one is."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, Soft)

    def chooser(self, iteration: int) -> GateChooser:
        """Always at first, as the hard gate."""
        return always if iteration < self._recipe.warm else soft


class BudgetLearner(AuraLearner):
    """A gate that nothing trains, held to the budget by the quantile of its values.

    Args:
        recipe: Its price, if any, is that of the decoder's error.
        make: The cell.
    """

    def __init__(self, recipe: Recipe, make: Callable[[], AuraMem]) -> None:
        super().__init__(recipe, make)
        self._threshold = 0.0

    def chooser(self, iteration: int) -> GateChooser:
        """Always at first, then above the running quantile."""
        return always if iteration < self._recipe.warm else hard_gate(self._threshold)

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk; what is priced is the decoder's error, where there is one."""
        model = self.module
        p = model.project(z)
        scanned = scan(model, p, states["S"], states["b"], self.chooser(iteration))
        quantile = torch.quantile(scanned.logits.detach(), 1.0 - BUDGET).item()
        first = iteration == 0
        self._threshold = (
            quantile if first else self._threshold + _SMOOTHING * (quantile - self._threshold)
        )
        after = {"S": scanned.S, "b": scanned.b}
        error = torch.zeros(())
        if isinstance(model, Reconstruction):
            error = model.error(p, p.v).mean()
        return lambda queries: model.act(scanned.o[queries], p.x[queries]), after, error


surprise_learner = partial(BudgetLearner, make=Surprise)
reconstruction_learner = partial(BudgetLearner, make=Reconstruction)
