"""Thresholds that are found on validation streams, which no test stream is."""

from __future__ import annotations

import numpy as np
import torch

from lab.evidence.controlled.arms import TOLERANCE
from lab.evidence.controlled.gates import ALWAYS, BUDGET, NEVER
from lab.evidence.controlled.streams import VALIDATION, VALIDATION_SEED, held_out
from lab.evidence.controlled.train import Training
from lab.training.aura import evaluate
from stategate.calibration.gates.scan import hard_gate, scan
from stategate.calibration.settings import Wish
from stategate.calibration.thresholds.curve import calibrate_gate
from stategate.contract import Episode
from stategate.models.memories.aura import AuraMem
from stategate.models.zoo.binding_stream import CONFIGS, BindingStreams

_SAMPLED_STEPS = 2048  # steps that show how far a gate's values reach


def calibrated_threshold(model: AuraMem, training: Training) -> float:
    """The one with the fewest writes within `TOLERANCE` of the best accuracy on validation streams.

    Raises:
        CalibrationError: Its gate never changes.
    """
    streams, steps = VALIDATION
    unseen = held_out(training.config, steps, streams, VALIDATION_SEED)
    episodes = [
        Episode({"z": z}, {"action": label})
        for z, label in zip(unseen.z, unseen.label, strict=True)
    ]
    return calibrate_gate(model, episodes, wish=Wish(TOLERANCE)).threshold


def budget_threshold(model: AuraMem, training: Training) -> float:
    """The threshold at which a gate writes as often as the schedules, on validation streams.

    Sixteen thresholds at a time are rolled through them in closed loop; the next sixteen lie
    around the nearest.
    """
    config = CONFIGS[training.config]
    world = training.recipe.world()
    streams, steps = VALIDATION

    def fresh() -> BindingStreams:
        return BindingStreams(config, world, streams, VALIDATION_SEED)

    low, high = _extremes(model, fresh().take(_SAMPLED_STEPS).z)
    for _ in range(3):
        tried = np.linspace(low, high, 16).tolist()
        gates = {one: hard_gate(one) for one in tried}
        scores = evaluate(model, fresh(), streams, steps, gates)
        best = min(tried, key=lambda one: abs(scores[one].write_rate - BUDGET))
        width = (high - low) / 15
        low, high = best - width, best + width
    return float(best)


@torch.no_grad()
def _extremes(model: AuraMem, z: np.ndarray) -> tuple[float, float]:
    """Smallest gate value where all is written, largest where nothing is."""
    p = model.project(torch.from_numpy(z))
    S = torch.zeros(z.shape[1], model.d_key, model.d_value)
    b = torch.zeros(z.shape[1], model.d_value)
    full, empty = (scan(model, p, S, b, hard_gate(at)).logits for at in (ALWAYS, NEVER))
    return float(full.min()), float(empty.max())
