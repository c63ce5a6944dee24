"""AURA-Mem's step as NumPy, after its equations in docs/concepts/aura-mem.md."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lab.peers.base import Peer, aura_weights, fixed
from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array

LEAK = np.float32(0.004)
SURPRISE_FLOOR = np.float32(1e-3)
UNIT_FLOOR = np.float32(1e-6)
ONE = np.float32(1)


def _sigmoid(x: Array) -> Array:
    return ONE / (ONE + np.exp(-x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


class AuraNumpy(Peer):
    """The step, one vector at a time."""

    def __init__(self, bundle: str) -> None:
        opened = Bundle.open(bundle)
        self._w = aura_weights(opened)
        (self._threshold,) = (float(value.reshape(-1)[0]) for value in fixed(opened).values())
        self._S: Array = np.zeros((32, 32), np.float32)
        self._b: Array = np.zeros(32, np.float32)
        self.engine = f"numpy {np.__version__}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        w, S, b, z = self._w, self._S, self._b, inputs["z"][0]

        def linear(name: str, x: Array) -> Array:
            y = w[f"{name}.weight"] @ x
            return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

        x = _silu(linear("encode", z))
        k, q = linear("to_k", x), linear("to_q", x)
        k = k / np.sqrt(k @ k + UNIT_FLOOR)
        q = q / np.sqrt(q @ q + UNIT_FLOOR)
        beta = _sigmoid(linear("to_beta", x)) / (ONE + w["c2"])
        read = q @ S
        residual = linear("to_v", x) - k @ S - b
        surprise = np.log(np.mean(residual * residual) + SURPRISE_FLOOR)
        hidden = linear("gate_hidden", _silu(linear("gate_in", z)))
        hidden = hidden + linear("gate_residual", residual) + surprise * w["gate_surprise"]
        gate = linear("gate_out", _silu(hidden))
        o = read + b
        if gate[0] > self._threshold:
            keep, change = ONE - LEAK * beta, beta * residual
            o = keep * o + change * (k @ q + w["c2"])
            self._S = keep * S + k[:, None] * change
            self._b = keep * b + w["c2"] * change
        action = linear("head_out", _silu(linear("head_in", np.concatenate((o, x)))))
        return {"action": action[None]}


open_peer = AuraNumpy
