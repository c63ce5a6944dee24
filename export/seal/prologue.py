"""The check of a prologue: the bundle begins an episode as the encoder itself would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from stategate.contract import Episode
from stategate.contract.episode import not_finite
from stategate.contract.errors import ParityError
from stategate.contract.specs import TensorSpec
from stategate.export.candidate import PrologueGraph
from stategate.export.seal.verify import Gaps, Limits
from stategate.runtime.check.full_pool import open_stepper

_DRAWS = 8  # episodes that are begun, beside the recorded one


def with_beginning(prologue: PrologueGraph, episode: Episode) -> Episode:
    """The episode, started from the states that its own prologue inputs give, or random ones."""
    inputs = episode.prologue or _drawn(prologue.signature.inputs, 0)
    return replace(episode, prologue=inputs, start=_states(prologue, inputs))


def prologue_error(
    bundle: Path, prologue: PrologueGraph, episode: Episode, limits: Limits
) -> float:
    """The largest difference of any state that the prologue fills, over several episodes."""
    gaps = Gaps()
    stepper = open_stepper(bundle)
    try:
        for seed in range(_DRAWS + 1):
            inputs = _drawn(prologue.signature.inputs, seed) if seed else episode.prologue
            right = _states(prologue, inputs)
            stepper.begin(**inputs)
            gaps.add({name: stepper.state(name) for name in right}, right)
    finally:
        stepper.close()
    error = gaps.worst()
    limit = limits.error if np.isfinite(limits.error) else 1e-4
    if not error <= limit:  # written so that NaN fails
        raise ParityError(
            "the prologue of the bundle parts from what it was made from",
            found=f"state error {error:.3g} in {_DRAWS + 1} episodes",
            expected=f"at most {limit:g}",
            remedy="look for random numbers and for memory in it; nothing was written",
        )
    return error


def _states(prologue: PrologueGraph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    states = prologue.reference(inputs)
    if holes := not_finite(states):
        raise ParityError(
            "the prologue itself gives NaN or Inf",
            found=", ".join(holes),
            expected="finite first states",
            remedy="give an episode with prologue.NAME that it is made for",
        )
    return states


def _drawn(tensors: tuple[TensorSpec, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        t.name: (
            rng.standard_normal(t.shape)
            if t.dtype.startswith("float")
            else rng.integers(0, 2, t.shape)
        ).astype(t.dtype)
        for t in tensors
    }
