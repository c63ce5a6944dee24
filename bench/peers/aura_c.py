"""The hand-written C floor: called through ctypes for its answers, timed in a loop of its own."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from stategate.bench.peers.base import Peer, aura_weights, fixed
from stategate.contract import Bundle
from stategate.contract.compiler import compile_library
from stategate.runtime.buffers import Array

# The order of the fields of `Weights` in aura.c.
_ORDER = (
    *("encode.weight", "encode.bias", "to_k.weight", "to_q.weight", "to_v.weight", "to_v.bias"),
    *("to_beta.weight", "to_beta.bias", "gate_in.weight", "gate_in.bias", "gate_hidden.weight"),
    *("gate_hidden.bias", "gate_residual.weight", "gate_surprise", "gate_out.weight"),
    *("gate_out.bias", "head_in.weight", "head_in.bias", "head_out.weight", "head_out.bias", "c2"),
)


class AuraC(Peer):
    """C through ctypes; with ``loop`` its own clock, without Python between the steps."""

    def __init__(self, bundle: str, loop: bool) -> None:
        opened = Bundle.open(bundle)
        weights = aura_weights(opened)
        (threshold,) = fixed(opened).values()
        parts = [weights[name].ravel() for name in _ORDER]
        self._weights = np.concatenate([*parts, threshold.ravel()]).astype(np.float32)
        self._state, self._action = np.zeros(33 * 32, np.float32), np.zeros((1, 8), np.float32)
        source = (resources.files("stategate.bench.peers") / "aura.c").read_bytes()
        made = compile_library(
            {"aura.c": source}, cc=os.environ.get("CC", "cc"), extra=("-fvisibility=default",)
        )
        with tempfile.TemporaryDirectory(prefix="stategate-") as folder:
            path = Path(folder) / "aura.so"
            path.write_bytes(made.library)
            self._library = ctypes.CDLL(str(path))
        fixed_pointers = (self._weights, self._state)
        self._fixed = [ctypes.c_void_p(array.ctypes.data) for array in fixed_pointers]
        self._out = ctypes.c_void_p(self._action.ctypes.data)
        self.engine = f"C, {made.isa}, {made.compiler}"
        self.bulk = self._loop if loop else None

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        pointer = ctypes.c_void_p(inputs["z"].ctypes.data)
        self._library.aura_step(*self._fixed, pointer, self._out)
        return {"action": self._action}

    def _loop(self, feeds: list[dict[str, Array]], first: int, ns: Array) -> None:
        """Fill ``ns`` with the times of so many steps from input ``first`` on."""
        z = np.ascontiguousarray(np.stack([feed["z"] for feed in feeds]))
        sizes = [ctypes.c_int64(n) for n in (len(feeds), first, len(ns))]
        times = ctypes.c_void_p(ns.ctypes.data)
        pointer = ctypes.c_void_p(z.ctypes.data)
        self._library.aura_burst(*self._fixed, pointer, *sizes, self._out, times)


def open_peer(bundle: str, loop: bool = False) -> AuraC:
    """Called from Python, or from a loop in C."""
    return AuraC(bundle, loop)
