"""What is trained and what is run: recipes, thresholds, storages and holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lab.evidence.robot.env import Body
from lab.evidence.robot.policies import POLICIES
from lab.evidence.robot.reach import Reach
from lab.evidence.robot.rows import Cell, Precision
from lab.evidence.robot.tmaze import TMaze
from lab.evidence.robot.train import Recipe

BODIES: dict[str, Callable[[], Body]] = {"tmaze": TMaze, "reach": Reach}
TITLES = {"tmaze": "T-maze", "reach": "Meta-World reach-v3"}
HOLDS = (0, 40, 150, 600, 2000)
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int8-fed-back")

_BASE = Recipe("", "", 0, 800, demos=400, batch=32, learning_rate=4e-3, write_price=0.0)
_POLICIES = (
    replace(_BASE, policy="two-frames"),
    replace(_BASE, policy="gru"),
    replace(_BASE, policy="delta"),
    replace(_BASE, policy="delta-cost", write_price=0.02),
    replace(_BASE, policy="aura", iterations=1000, write_price=0.02),
    replace(_BASE, policy="aura-always", iterations=1000),
)
RECIPES = {(task, r.policy): replace(r, task=task) for task in BODIES for r in _POLICIES}

# None, besides, writes always. What a gate is differs: a share of (0, 1) for channels of a GRU
# and heads of the delta rule, a logit for AURA-Mem.
_THRESHOLDS: dict[str, tuple[float, ...]] = {
    "two-frames": (),
    "gru": (0.01, 0.03, 0.1),
    "delta": (0.1, 0.3),
    "delta-cost": (0.01, 0.015, 0.03),
    "aura": (-2.0, 0.0),
    "aura-always": (),
}


class Form(NamedTuple):
    """A policy as it is run; see `Cell`."""

    policy: str
    threshold: float | None
    precision: Precision
    wiped: bool = False


def _forms() -> Iterator[Form]:
    for policy in POLICIES:
        # Two frames are no memory that could wear off or be wiped.
        fading = policy != "two-frames"
        for precision in PRECISIONS if fading else PRECISIONS[:1]:
            yield Form(policy, None, precision)
        if fading:
            yield Form(policy, None, "float32", wiped=True)
        # A GRU's gate is by channel: those of a row would share a scale, which export refuses.
        scaled = policy != "gru"
        for threshold in _THRESHOLDS[policy]:
            for precision in PRECISIONS if scaled else PRECISIONS[:2]:
                yield Form(policy, threshold, precision)


FORMS = tuple(_forms())


def cells(task: str, policy: str, seed: int, holds: Sequence[int] = HOLDS) -> Iterator[Cell]:
    """Every cell of a trained policy, those of one bundle together.

    Args:
        task: One of `BODIES`.
        policy: One of `POLICIES`.
        seed: Of its training.
        holds: Idle steps.
    """
    for name, threshold, precision, wiped in FORMS:
        if name == policy:
            for hold in holds:
                yield Cell(task, policy, seed, precision, threshold, hold, wiped)
