"""Where the corpora are, and the bundle that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stategate.contract import Budget
from stategate.runtime.keep.store import SLOTS

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "tests/fuzz"
BUNDLE = PLACE / "bundle"
SLOT = SLOTS[0]
BUDGET = Budget(writes_per_1000_steps=900, persisted_bytes_per_day=1e9)
RING_BLOCKS = 16
SOUND_HZ = 8000


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """What came of one door."""

    door: str
    tried: int
    seconds: float
    broken: tuple[str, ...]  # what was let through, and the file that did it


def observation(t: int) -> np.ndarray:
    """The input of one step; two of three open the gate."""
    return np.array([[(1.0, -1.0, 0.5)[t % 3], np.sin(t)]], np.float32)
