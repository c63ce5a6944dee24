"""The bundle's own graph in tract, which its Python package runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tract

from lab.peers.base import Peer, fixed, states
from stategate.contract import Bundle
from stategate.runtime.base.buffers import Array


class Tract(Peer):
    """One plan, states carried by hand: what it gives is its own tensors, taken as they are."""

    def __init__(self, bundle: str) -> None:
        opened = Bundle.open(bundle)
        step = opened.manifest.step
        path: Path = opened.path / opened.manifest.step_graph.file.path
        self._plan = tract.onnx().load(path.resolve()).into_model().into_runnable()
        fed = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
        first = {**fed, **fixed(opened), **states(opened)}
        self._names = list(step.graph_inputs())
        self._feeds = [first[name] for name in self._names]
        outputs = list(step.graph_outputs())
        carried = {spec.next_name: self._names.index(spec.name) for spec in step.states}
        self._carried = [(outputs.index(name), at) for name, at in carried.items()]
        self._outputs = [(spec.name, outputs.index(spec.name)) for spec in step.outputs]
        self.engine = f"tract {version('tract')}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._feeds[self._names.index(name)] = array
        results = self._plan.run(self._feeds)
        for output, at in self._carried:
            self._feeds[at] = results[output]
        return {name: results[at].to_numpy() for name, at in self._outputs}


open_peer = Tract
