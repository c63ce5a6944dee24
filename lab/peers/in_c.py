"""Steps in C: the generated one of the bundle, and the floor, written by hand for AURA-Mem.

Both have one signature. They answer through ctypes, and are timed in a loop of C as well, with the
gate held open or shut, so that no interpreter is in those figures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab.peers.base import Peer, aura_weights, fixed, states
from stategate.common.compiler import Compiled, compile_library
from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.native_call import pointers

# Steps of the loop in C that share a figure: two looks at a clock would be a tenth of one step.
_CHUNK = 50
_THRESHOLDS = {"open": -1e30, "shut": 1e30}

# Sums by hand are rows of products, which a compiler may take in any order.
_ANY_ORDER = ("-fassociative-math", "-fno-signed-zeros")

Held = Literal["open", "shut"]


class InC(Peer):
    """A compiled step on two banks of states that take turns when the gate is open.

    Args:
        bundle: One with a native engine; its gate is one number.
        by_hand: Step the floor and not the generated code.
        held: How the gate is held while bursts are timed in a loop of C; None times each call
            through ctypes, the gate deciding.
    """

    def __init__(self, bundle: str, by_hand: bool = False, held: Held | None = None) -> None:
        opened = Bundle.open(bundle)
        native, step = opened.manifest.native, opened.manifest.step
        if native is None or not native.library:
            raise MeasurementError(
                "the bundle has no native engine to measure",
                found=opened.manifest.model.name,
                remedy="stategate device build-native BUNDLE",
            )
        if len(step.gates) != 1 or step.gates[0].threshold_input is None:
            raise MeasurementError("the loop in C holds one gate, at an input of the graph")
        arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
        self._inputs = dict(arrays)
        arrays |= fixed(opened)
        for spec in step.states:
            arrays[spec.next_name] = np.zeros(spec.shape, spec.dtype)
        further = []
        if by_hand:
            further = [aura_weights(opened)["c2"]]
            compiled, self._compute = _floor(opened)
            self.engine = f"C by hand, {compiled.isa}, {compiled.compiler}"
        else:
            self._compute = ctypes.CDLL(str((opened.path / native.library).resolve()))
            self._compute = self._compute.stategate_compute
            self.engine = f"C, {native.isa}, {native.compiler}"
        arrays |= states(opened)
        self._outputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.outputs}
        gate = np.zeros(step.gates[0].shape, np.float32)
        arrays |= {**self._outputs, step.gates[0].name: gate}
        self._gate, self._threshold = gate.reshape(-1), arrays[step.gates[0].threshold_input]
        other = {spec.name: spec.next_name for spec in step.states}
        other |= {after: before for before, after in other.items()}
        self._rows = [
            [
                pointers([*(arrays[swapped.get(n, n)] for n in names), *more])
                for swapped in ({}, other)
            ]
            for names, more in ((step.graph_inputs(), further), (step.graph_outputs(), []))
        ]
        self._alive, self._turn = [arrays, further], 0  # the tables point into these
        self.bulk = None
        if held is not None:
            self._level = _THRESHOLDS[held]
            self._nanoseconds = _library({"loop.c": _source("loop.c")})[1].nanoseconds
            self._nanoseconds.restype = ctypes.c_double
            self.bulk = self._loop

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._inputs[name][...] = array
        input_rows, output_rows = self._rows
        self._compute(ctypes.byref(input_rows[self._turn]), ctypes.byref(output_rows[self._turn]))
        self._turn ^= bool(self._gate[0] > self._threshold.reshape(-1)[0])
        return self._outputs

    def _loop(self, feeds: list[dict[str, Array]], at: int, ns: Array) -> None:
        """Fill ``ns``; every ``_CHUNK`` of them share the input and the figure."""
        tables = [(ctypes.c_void_p * 2)(*map(ctypes.addressof, rows)) for rows in self._rows]
        self._threshold.fill(self._level)
        for i in range(0, len(ns), _CHUNK):
            for name, array in feeds[(at + i) % len(feeds)].items():
                self._inputs[name][...] = array
            ns[i : i + _CHUNK] = self._nanoseconds(self._compute, *tables, _CHUNK)


def _floor(bundle: Bundle) -> tuple[Compiled, Any]:
    """The floor, with the weights of this bundle in it."""
    weights = _rows_of_weights(bundle)
    sources = {"floor.c": _source("aura.c"), "exp.h": _source("exp.h"), "weights.bin": weights}
    compiled, library = _library(sources, *_ANY_ORDER)
    if library.floor_weight_bytes() > len(weights) + 63:
        raise MeasurementError("the floor's weights are not those of this bundle")
    return compiled, library.floor_compute


def _source(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()


def _rows_of_weights(bundle: Bundle) -> bytes:
    """The constants of the graph as they lie in it, each at a multiple of 64 bytes."""
    import onnx
    from onnx import numpy_helper

    from stategate.export.passes.pinned import pinned

    graph = onnx.load_model_from_string(bundle.read(bundle.manifest.step_graph.file))
    arrays = map(numpy_helper.to_array, pinned(graph, bundle.manifest.step).graph.initializer)
    raw = [a.astype("<f4").tobytes() for a in arrays if a.ndim and a.dtype == np.float32]
    return b"".join(part + bytes(-len(part) % 64) for part in raw)


def _library(sources: Mapping[str, bytes], *flags: str) -> tuple[Compiled, ctypes.CDLL]:
    compiled = compile_library(sources, extra=flags)
    with scratch_folder() as folder:
        path = Path(folder) / "made.so"
        path.write_bytes(compiled.library)
        return compiled, ctypes.CDLL(str(path))


open_peer = InC
