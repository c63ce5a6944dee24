"""The bundle's own graph in plain ONNX Runtime, the two ways that its users know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from lab.peers.base import Peer, fixed, states
from stategate.common.onnx_runtime import one_thread
from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array


def _session(bundle: Bundle) -> Any:
    options = one_thread(onnxruntime.SessionOptions())
    graph = bundle.read(bundle.manifest.step_graph.file)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Run(Peer):
    """``InferenceSession.run``, states carried by hand."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = _session(bundle)
        self._feed = {**fixed(bundle), **states(bundle)}
        self._names = [node.name for node in self._session.get_outputs()]
        self._carried = [(spec.name, spec.next_name) for spec in bundle.manifest.states]
        self.engine = f"onnxruntime {onnxruntime.__version__} run"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        values = self._session.run(self._names, {**self._feed, **inputs})
        outputs: dict[str, Array] = dict(zip(self._names, values, strict=True))
        for name, next_name in self._carried:
            self._feed[name] = outputs[next_name]
        return outputs


class Bound(Peer):
    """Everything bound beforehand, in two bindings that take turns, each reading the other's."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = _session(bundle)
        step = bundle.manifest.step
        self._inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
        self._alive: list[Any] = []
        outputs = step.graph_outputs()
        self._outputs = {name: np.zeros(s.shape, s.dtype) for name, s in outputs.items()}
        banks = [states(bundle), states(bundle)]
        self._bindings = [self._bind(bundle, banks[i], banks[1 - i]) for i in (0, 1)]
        self._turn = 0
        self.engine = f"onnxruntime {onnxruntime.__version__} bound"

    def _bind(self, bundle: Bundle, old: dict[str, Array], new: dict[str, Array]) -> Any:
        binding = self._session.io_binding()
        arrays = {**fixed(bundle), **self._inputs, **old}
        results = {**self._outputs, **{s.next_name: new[s.name] for s in bundle.manifest.states}}
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, self._value(array))
        for name, array in results.items():
            binding.bind_ortvalue_output(name, self._value(array))
        return binding

    def _value(self, array: Array) -> Any:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        self._alive += [array, value]  # a binding does not own what it reads
        return value

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._inputs[name][...] = array
        self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn ^= 1
        return self._outputs


def open_peer(bundle: str, bound: bool = False) -> Peer:
    """``run`` with dictionaries, or bound buffers."""
    opened = Bundle.open(bundle)
    return Bound(opened) if bound else Run(opened)
