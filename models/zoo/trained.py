"""Small models trained on the controlled benchmark, each with its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from stategate.contract import Episode, StepSpec
from stategate.models import checkpoint
from stategate.models.memories.aura import AuraMem
from stategate.models.step import StepModel
from stategate.models.training.aura import AuraLearner
from stategate.models.training.step import DeltaLearner, GruLearner, delta_stack, gru_policy
from stategate.models.training.stream import GateRule, Learner, Recipe
from stategate.models.zoo.binding_stream import CONFIGS, single_stream
from stategate.models.zoo.entry import Sized, ZooEntry


class _AuraSize:
    """The published configuration, which is the shipped one."""

    def step_spec(self) -> StepSpec:
        with torch.device("meta"):
            return AuraMem().step_spec()


@dataclass(frozen=True, slots=True)
class Training:
    """How a checkpoint is made.

    Attributes:
        learner: What learns.
        recipe: With which settings.
        rules: Gate rules that are trained from scratch; the first is shipped, the others are what
            it is compared with.
        thresholds: At which the shipped one is scored; none where its gate is soft.
        horizons: Steps, and how many streams of them.
    """

    learner: Callable[[Recipe], Learner]
    recipe: Recipe
    rules: tuple[GateRule, ...]
    thresholds: tuple[float, ...]
    horizons: tuple[tuple[int, int], ...]


TRAININGS: dict[str, Training] = {
    "aura-hard": Training(
        AuraLearner,
        Recipe(),
        ("learned", "always", "random", "periodic"),
        (-2.0, 0.0),
        ((4096, 8), (100_000, 4)),
    ),
    "gdn2-hard": Training(
        DeltaLearner,
        Recipe(
            gate="soft",
            iterations=3000,
            write_price=0.24,
            ramp_share=0.8,
            settle_share=0.0,
        ),
        ("soft",),
        (0.0, 0.03, 0.3),
        ((4096, 8), (16_384, 4)),
    ),
    "gru-few": Training(
        GruLearner,
        Recipe(
            config="few",
            gate="soft",
            learning_rate=3e-3,
            write_price=0.0,
            always_share=0.3,
            settle_share=0.0,
        ),
        ("soft",),
        (),
        ((4096, 8), (32_768, 4)),
    ),
}  # fmt: skip


def _entry(
    name: str,
    make: Callable[[], nn.Module],
    family: str,
    summary: str,
    write: str,
    paper: str,
    published: Mapping[str, Sized] | None = None,
) -> ZooEntry:
    path = checkpoint.folder() / f"{name}.safetensors"

    def build() -> StepModel:
        with torch.random.fork_rng(devices=[]):
            model = checkpoint.load(path, make())[0]
        assert isinstance(model, StepModel)
        return model

    def episode(steps: int, seed: int) -> Episode:
        _, world, card = checkpoint.load(path, make())
        spec = build().step_spec()
        chunks = list(single_stream(CONFIGS[card.recipe.config], world, steps, seed))
        return Episode(
            inputs={spec.inputs[0].name: np.concatenate([chunk.z for chunk in chunks])},
            labels={spec.outputs[0].name: np.concatenate([chunk.label[:, 0] for chunk in chunks])},
        )

    return ZooEntry(name, family, summary, write, paper, "trained", build, episode, published or {})


TRAINED = (
    _entry(
        "aura-hard",
        AuraMem,
        "aura",
        "AURA-Mem trained on the hard binding stream: 8 actions, 16 bindings",
        "a rank-1 update of the 32x32 matrix S and its bias b, when the gate opens",
        "arXiv:2606.02775",
        {"aura-mem": _AuraSize()},
    ),
    _entry(
        "gdn2-hard",
        delta_stack,
        "gated_deltanet2",
        "two Gated DeltaNet-2 layers trained on the hard binding stream with a price on writing",
        "a rank-1 update k u^T of a head's matrix; decay is none, it is folded into the reads",
        "arXiv:2605.22791",
    ),
    _entry(
        "gru-few",
        gru_policy,
        "gru",
        "a GRU policy trained on a binding stream of two entities to remember",
        "every step; by channel where its gate is above a threshold, if one is calibrated",
        "arXiv:1406.1078",
    ),
)  # fmt: skip
