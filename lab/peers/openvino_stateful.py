"""The bundle's graph in OpenVINO, its states made variables of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino
from openvino._offline_transformations import apply_make_stateful_transformation

from lab.peers.base import Peer, fixed, states
from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array


class Stateful(Peer):
    """One infer request on one thread; with a ``source`` in float32, its weights in int8."""

    def __init__(self, bundle: str, source: str | None = None) -> None:
        opened = Bundle.open(source or bundle)
        states(opened)  # variables begin at zero
        core = openvino.Core()
        model = core.read_model(opened.read(opened.manifest.step_graph.file))
        if source is not None:
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        pairs = {spec.name: spec.next_name for spec in opened.manifest.states}
        apply_make_stateful_transformation(model, pairs)
        options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})
        self._request = compiled.create_infer_request()
        inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in opened.manifest.inputs}
        self._inputs = {**inputs, **fixed(opened)}
        for name, array in self._inputs.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        names = [spec.name for spec in opened.manifest.outputs]
        self._outputs = {name: self._request.get_tensor(name).data for name in names}
        how = ", int8 weights" if source is not None else ""
        self.engine = f"openvino {openvino.__version__.split('-')[0]} stateful{how}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._inputs[name][...] = array
        self._request.start_async()
        self._request.wait()
        return self._outputs


open_peer = Stateful
