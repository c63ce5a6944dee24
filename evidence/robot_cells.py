"""What is trained and what is run: recipes, thresholds, storages and holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from evidence.robot_env import Body
from evidence.robot_policies import POLICIES
from evidence.robot_reach import Reach
from evidence.robot_rows import Cell, Precision
from evidence.robot_tmaze import TMaze
from evidence.robot_train import Recipe

BODIES: dict[str, Callable[[], Body]] = {"tmaze": TMaze, "reach": Reach}
HOLDS = (0, 40, 150, 600, 2000)
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int8-fed-back")

_BASE = Recipe("", "", 0, 800, demos=400, batch=32, learning_rate=4e-3, write_price=0.0)
_POLICIES = (
    replace(_BASE, policy="two-frames"),
    replace(_BASE, policy="gru"),
    replace(_BASE, policy="delta"),
    replace(_BASE, policy="delta-cost", write_price=0.02),
    replace(_BASE, policy="aura", iterations=1000, write_price=0.02),
)
RECIPES = {(task, r.policy): replace(r, task=task) for task in BODIES for r in _POLICIES}

# None writes always. What a gate is differs: a share of (0, 1) for a GRU's channels and the delta
# rule's heads, a logit for AURA-Mem.
_THRESHOLDS: dict[str, tuple[float | None, ...]] = {
    "two-frames": (None,),
    "gru": (None, 0.01, 0.03, 0.1),
    "delta": (None, 0.1, 0.3),
    "delta-cost": (None, 0.03, 0.1, 0.3),
    "aura": (None, -2.0, 0.0),
}


def cells(task: str, policy: str, seed: int, holds: Sequence[int] = HOLDS) -> Iterator[Cell]:
    """Every cell of a trained policy, those of one bundle together.

    Args:
        task: One of `BODIES`.
        policy: One of `POLICIES`.
        seed: Of its training.
        holds: Idle steps.
    """
    assert policy in POLICIES
    for threshold, precision in product(_THRESHOLDS[policy], PRECISIONS):
        # A GRU's gate is by channel: those of a row would share a scale, which export refuses.
        if policy == "gru" and threshold is not None and precision.startswith("int8"):
            continue
        for hold in holds:
            yield Cell(task, policy, seed, precision, threshold, hold)
            # The control: one form of each policy is enough, and what has no memory needs none.
            if precision == "float32" and threshold is None and policy != "two-frames":
                yield Cell(task, policy, seed, precision, threshold, hold, wiped=True)
