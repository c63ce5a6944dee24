"""How each trained model of the zoo was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.training.aura import AuraLearner
from lab.training.step import DeltaLearner, GruLearner
from lab.training.stream import Learner, Recipe


@dataclass(frozen=True, slots=True)
class Training:
    """How a checkpoint is made.

    Attributes:
        learner: What learns.
        recipe: With which settings.
        thresholds: At which it is scored; none where its gate is soft.
        horizons: Steps, and how many streams of them.
    """

    learner: Callable[[Recipe], Learner]
    recipe: Recipe
    thresholds: tuple[float, ...]
    horizons: tuple[tuple[int, int], ...]


TRAININGS: dict[str, Training] = {
    "aura-hard": Training(
        AuraLearner,
        Recipe(iterations=4000, tutored_share=1 / 8),
        (-2.0, 0.0),
        ((4096, 8), (100_000, 4)),
    ),
    "gdn2-hard": Training(
        DeltaLearner,
        Recipe(gate="soft", iterations=3000, write_price=0.24, ramp_share=0.8, settle_share=0.0),
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
        (),
        ((4096, 8), (32_768, 4)),
    ),
}
