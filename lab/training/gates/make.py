"""From a model and episodes to a trained part on disk, in one call each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.training.gates.learned import LearnedGate
from lab.training.gates.recipes import GateRecipe, RetentionRecipe
from lab.training.gates.retention import lived_error, train_retention
from lab.training.gates.training import Judged, at_random, judge, train_gate
from stategate.calibration.recordings import Episodes, episodes_for
from stategate.common import console
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.models.load import load_model
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.weights import save_part, weights_sha256


@dataclass(frozen=True, slots=True)
class GateTraining:
    """What a trained gate does on held-out inputs, and one that opens as often by chance."""

    trained: Judged
    random: Judged


@dataclass(frozen=True, slots=True)
class RetentionTraining:
    """Output errors against all of the past, held out."""

    error_before: float
    error_after: float


def make_gate(
    model: object,
    out: Path,
    episodes: Episodes | None,
    *,
    steps: int,
    count: int,
    recipe: GateRecipe,
) -> GateTraining:
    """Train a gate over the whole memory of a model, which stays as it is, and write it.

    Args:
        model: See `stategate.make`.
        out: The trained part.
        episodes: The last one is held out; None for the benchmark of a zoo model.
        steps: Of each episode of the zoo.
        count: How many, of the zoo.
        recipe: How.
    """
    loaded = load_model(model)
    training, held_out = _parted(episodes_for(loaded, episodes, steps, count)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        gate = LearnedGate(loaded.model)
    with console.progress(recipe.iterations, "training the gate") as report:
        train_gate(gate, training, recipe, report)
    trained = judge(gate, [held_out], lambda logit: logit > gate.threshold)
    chance = judge(gate, [held_out], at_random(trained.write_rate, recipe.seed))
    gate.save_gate(out)
    return GateTraining(trained, chance)


def make_retention(
    model: object,
    out: Path,
    episodes: Episodes | None,
    *,
    steps: int,
    count: int,
    recipe: RetentionRecipe,
) -> RetentionTraining:
    """Train what a TRIM-KV retains; everything else of it stays as it is. See `make_gate`."""
    loaded = load_model(model)
    module = loaded.module
    if not isinstance(module, TrimKv):
        raise CalibrationError(
            "only a TRIM-KV has retention gates",
            found=f"{type(module).__name__} from {loaded.name}",
            expected="a stategate.models.memories.trim_kv.cell.TrimKv",
            remedy="for other families: python -m lab train-gate",
        )
    untrained = weights_sha256(module)
    training, held_out = _parted(episodes_for(loaded, episodes, steps, count)[0])
    before = lived_error(module, held_out)
    with console.progress(recipe.iterations, "training the gates") as report:
        train_retention(module, training, recipe, report)
    after = lived_error(module, held_out)
    save_part(out, dict(module.retention_gates()), untrained)
    return RetentionTraining(before, after)


def _parted(episodes: Iterable[Episode]) -> tuple[list[Episode], Episode]:
    """What is trained on, and the last one, which is held out."""
    *training, held_out = episodes
    if not training:
        raise EpisodeError("two episodes at least are needed: the last one is held out")
    return training, held_out
