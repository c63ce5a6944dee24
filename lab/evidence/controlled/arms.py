"""What is compared on the controlled benchmark, and how each of them is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from torch import nn

from lab.evidence.controlled.cache import CacheLearner, FrameSampling, GrowingCache
from lab.evidence.controlled.gates import (
    ALWAYS,
    Blind,
    Reconstruction,
    Scheduled,
    Soft,
    SoftLearner,
    Surprise,
    reconstruction_learner,
    surprise_learner,
)
from lab.evidence.controlled.learners import (
    LinearAttention,
    LinearAttentionLearner,
    MinGruLearner,
    RecurrentLearner,
    StackLearner,
    TrimKvLearner,
    gated_delta,
    mingru,
    mlstm,
    recurrent,
    rwkv7,
    trim_kv,
)
from lab.training.aura import AuraLearner
from lab.training.stream import Learner, Recipe
from stategate.models.memories.aura import AuraMem

ITERATIONS = {"easy": 1500, "hard": 2000, "xhard": 3000, "slow": 2000}
CONFIGS = ("hard", "easy", "xhard", "slow")
BUDGETED: Final = "budget"
"""A threshold that is found: the one that writes as often as the schedules."""
CALIBRATED: Final = "calibrated"
"""A threshold that is found: the one that ``stategate calibrate`` chooses for each training."""
Threshold = float | None | Literal["budget", "calibrated"]
TOLERANCE = 0.0025
"""Accuracy that a calibrated threshold may give up: half of the half point that is the goal."""
DEPLOYED = -2.0
"""AURA-Mem's threshold: the one that calibration on validation streams chose for the first shipped
checkpoint, for every seed and configuration here."""

_PLAIN = Recipe(gate="soft", write_price=0.0, settle_share=0.0)
_RECURRENT = replace(_PLAIN, learning_rate=3e-3)


_MOST = {"hard": 5, "easy": 3, "xhard": 3, "slow": 2}
_BLINDNESS = {"xhard": 8}  # trainings, tutored and not: whether a gate goes blind to a value
_ALL = {"hard": 3, "easy": 3, "xhard": 3}
_HARD = {"hard": 3}


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table.

    Attributes:
        says: What the page calls it.
        learner: What learns.
        deployed: Makes the module that a checkpoint is loaded into and exported.
        recipe: Without configuration, seed and iterations.
        seeds: Trainings, by configuration.
        thresholds: That the bundle is made with; None where it has no gate of that kind.
        share: Of the configuration's iterations.
        longest: Horizon beyond which it is not stepped, because it takes too long.
        weights_of: The arm whose trainings it takes, where it has none of its own.
        shifted: Whether its hard bundles also meet streams that no training saw.
        interfered: Whether they are also asked about a lesson after other sessions.
    """

    says: str
    learner: Callable[[Recipe], Learner]
    deployed: Callable[[], nn.Module]
    recipe: Recipe = _PLAIN
    seeds: Mapping[str, int] = field(default_factory=lambda: _ALL)
    thresholds: tuple[Threshold, ...] = (None,)
    share: float = 1.0
    longest: int = 100_000
    weights_of: str | None = None
    shifted: bool = False
    interfered: bool = False

    def recipe_for(self, config: str, seed: int) -> Recipe:
        """Everything that decides one checkpoint of it."""
        iterations = max(1, round(self.share * ITERATIONS[config]))
        return replace(self.recipe, config=config, seed=seed, iterations=iterations)


_CACHE = replace(_PLAIN, chunk=256, streams=12, reset_probability=1.0)
_SOFT = replace(Recipe(), gate="soft", settle_share=0.0)
_DECODER = replace(_PLAIN, write_price=1.0, ramp_share=0.0)


def _recurrent(
    kind: type[nn.GRU] | type[nn.LSTM], hidden: int, seeds: Mapping[str, int], share: float = 1.0
) -> Arm:
    return Arm(
        f"{kind.__name__}, {hidden:,} channels",
        partial(RecurrentLearner, kind=kind, hidden=hidden),
        partial(recurrent, kind, hidden),
        _RECURRENT,
        seeds,
        share=share,
        longest=100_000 if hidden < 500 else 4096,
    )


def _square(side: int) -> Arm:
    make = partial(AuraMem, d_key=side, d_value=side)
    return Arm(
        f"AURA-Mem, state {side} x {side}",
        partial(AuraLearner, make=make),
        make,
        Recipe(),
        _HARD,
        (DEPLOYED,),
    )


ARMS: dict[str, Arm] = {
    "learned": Arm(
        "AURA-Mem",
        AuraLearner,
        AuraMem,
        Recipe(),
        _MOST | _BLINDNESS,
        (DEPLOYED, 0.0, CALIBRATED),
        shifted=True,
    ),
    "tutored": Arm(
        "AURA-Mem, tutored",
        AuraLearner,
        AuraMem,
        Recipe(tutored_share=1 / 8),
        {"hard": 5, "easy": 3} | _BLINDNESS,
        (DEPLOYED, 0.0, CALIBRATED),
    ),
    "longer": Arm(
        "AURA-Mem, tutored, twice as long",
        AuraLearner,
        AuraMem,
        Recipe(tutored_share=1 / 8),
        {"hard": 5, "easy": 3},
        (DEPLOYED, 0.0, CALIBRATED),
        share=2.0,
        interfered=True,
    ),
    "always": Arm(
        "the same cell, written always",
        AuraLearner,
        AuraMem,
        Recipe(gate="always"),
        _MOST,
        (ALWAYS,),
        shifted=True,
    ),
    "always-longer": Arm(
        "the same cell, written always, twice as long",
        AuraLearner,
        AuraMem,
        Recipe(gate="always"),
        {"hard": 5, "easy": 3},
        (ALWAYS,),
        share=2.0,
        interfered=True,
    ),
    "gated-delta": Arm(
        "gated delta rule, learned decay",
        partial(StackLearner, make=gated_delta),
        gated_delta,
        shifted=True,
        interfered=True,
    ),
    "linear-attention": Arm(
        "linear attention, decay", LinearAttentionLearner, LinearAttention, interfered=True
    ),
    "mlstm": Arm("mLSTM", partial(StackLearner, make=mlstm), mlstm, seeds=_HARD, interfered=True),
    "rwkv7": Arm(
        "RWKV-7", partial(StackLearner, make=rwkv7), rwkv7, seeds=_HARD, share=0.5, interfered=True
    ),
    "trim-kv": Arm(
        "TRIM-KV, 16 tokens",
        TrimKvLearner,
        trim_kv,
        replace(_CACHE, gate="soft", write_price=1.0, always_share=0.5),
        _HARD,
        interfered=True,
    ),
    "mingru-1056": Arm(
        "minGRU, 1,056 channels",
        partial(MinGruLearner, hidden=1056),
        partial(mingru, 1056),
        _RECURRENT,
    ),
    "gru-64": _recurrent(nn.GRU, 64, _ALL),
    "lstm-64": _recurrent(nn.LSTM, 64, _ALL),
    "cache": Arm("growing KV cache", CacheLearner, GrowingCache, _CACHE, interfered=True),
    "frames": Arm(
        "the cache's weights, 16 frames sampled",
        CacheLearner,
        FrameSampling,
        _CACHE,
        _HARD,
        longest=4096,
        weights_of="cache",
        interfered=True,
    ),
    "reconstruction": Arm(
        "gate by reconstruction gain",
        reconstruction_learner,
        Reconstruction,
        _DECODER,
        thresholds=(BUDGETED,),
    ),
    "surprise": Arm("gate by surprise", surprise_learner, Surprise, thresholds=(BUDGETED,)),
    "oracle": Arm(
        "AURA-Mem's cell, written at events",
        AuraLearner,
        Scheduled,
        Recipe(),
        _MOST,
        weights_of="learned",
    ),
    "foresight": Arm(
        "the longer cell, written at events that are asked for",
        AuraLearner,
        Scheduled,
        Recipe(tutored_share=1 / 8),
        {"hard": 1, "easy": 1},
        share=2.0,
        weights_of="longer",
    ),
    "random": Arm(
        "random schedule", AuraLearner, Scheduled, Recipe(gate="random"), interfered=True
    ),
    "periodic": Arm(
        "periodic schedule", AuraLearner, Scheduled, Recipe(gate="periodic"), interfered=True
    ),
    # What follows is an ablation, or too large to train as long as the others.
    "blind": Arm(
        "AURA-Mem, gate without surprise",
        partial(AuraLearner, make=Blind),
        Blind,
        Recipe(),
        _HARD,
        (DEPLOYED,),
    ),
    "soft": Arm(
        "AURA-Mem, soft gate",
        SoftLearner,
        Soft,
        replace(Recipe(), gate="soft", settle_share=0.0),
        _HARD,
    ),
    "free": Arm(
        "AURA-Mem, writes not priced",
        AuraLearner,
        AuraMem,
        replace(Recipe(), write_price=0.0),
        _HARD,
        (DEPLOYED,),
    ),
    "square-16": _square(16),
    "square-64": _square(64),
    "gru-256": _recurrent(nn.GRU, 256, {"hard": 1}),
    # At equal time: one iteration takes so many times longer.
    "lstm-528": _recurrent(nn.LSTM, 528, {"hard": 1}, share=0.26),
    "gru-1056": _recurrent(nn.GRU, 1056, {"hard": 1}, share=0.05),
}

MOST_SEEDS = max(max(arm.seeds.values()) for arm in ARMS.values())
"""Trainings of the arm that has most."""
