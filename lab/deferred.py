"""Deferred writes against plain ones: bytes, time of a step in C, and errors against float64."""

from __future__ import annotations

import numpy as np
from torch import nn

from stategate.contract import Episode, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.memories.delta.cell import Carried, Tokens, step
from stategate.models.memories.matrix import Ring
from stategate.models.step import StepResult, Tensors


class Heads(nn.Module):
    """Heads of Gated DeltaNet-2 alone, whose keys, values and gates are inputs."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self._heads, self._dim = heads, dim

    def step_spec(self) -> StepSpec:
        """Six rows of tokens in, one out."""
        n, d = self._heads, self._dim
        return StepSpec(
            tuple(TensorSpec(name, (1, n, d)) for name in Tokens._fields),
            (TensorSpec("o", (1, n, d)),),
            (
                StateSpec("S", (1, n, d, d), gate="write", layout="head, key, value"),
                StateSpec("log_decay", (1, n, d)),
            ),
            (GateSpec("write", "hard", (1, n), 0.0, "threshold", granularity="head"),),
        )

    def rings(self) -> tuple[Ring, ...]:
        """The matrix can wait."""
        return (Ring("ring", self._heads, self._dim, self._dim, {"S": self._dim}),)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One token for each head."""
        tokens = Tokens(*(inputs[name] for name in Tokens._fields))
        carried = Carried(states["S"], states["log_decay"])
        o, after, gate = step(tokens, carried, inputs["threshold"], "gate")
        return StepResult({"o": o}, after._asdict(), {"write": gate})


def tokens(heads: int, dim: int, steps: int, seed: int = 0) -> Episode:
    """Unit keys and queries, gates between 0 and 1, decays that forget in 1 to 1,000 steps."""
    rng = np.random.default_rng(seed)
    form = (steps, 1, heads, dim)
    unit = {name: rng.normal(size=form) for name in "qk"}
    unit = {n: x / np.sqrt((x * x).sum(-1, keepdims=True)) for n, x in unit.items()}
    rates = np.exp(rng.uniform(np.log(1e-3), 0.0, size=(1, 1, heads, dim)))
    inputs = {
        **unit,
        "v": rng.normal(size=form),
        "g": -rates * rng.uniform(0.0, 2.0, size=form),
        "b": rng.uniform(0.0, 1.0, size=form),
        "w": rng.uniform(0.0, 1.0, size=form),
    }
    return Episode({name: inputs[name].astype(np.float32) for name in Tokens._fields})
