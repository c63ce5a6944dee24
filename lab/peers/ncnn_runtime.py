"""The bundle's own graph through pnnx, the converter of ncnn, in ncnn."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np

from lab.peers.base import Peer, fixed, states
from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array


class Ncnn(Peer):
    """In float32 on one thread; its tensors have no batch axis."""

    def __init__(self, bundle: str) -> None:
        opened = Bundle.open(bundle)
        step, self._net = opened.manifest.step, ncnn.Net()
        self._net.opt.num_threads = 1
        self._net.opt.use_fp16_packed = self._net.opt.use_fp16_storage = False
        self._net.opt.use_fp16_arithmetic = self._net.opt.use_bf16_storage = False
        with scratch_folder() as folder:
            graph = Path(folder) / "step.onnx"
            graph.write_bytes(opened.read(opened.manifest.step_graph.file))
            _convert(graph)
            for load, kind in ((self._net.load_param, "param"), (self._net.load_model, "bin")):
                if load(str(graph.with_suffix(f".ncnn.{kind}"))) != 0:
                    raise MeasurementError("ncnn does not load what its converter wrote")
        fed = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
        first = {**fed, **fixed(opened), **states(opened)}
        self._in = {name: f"in{i}" for i, name in enumerate(step.graph_inputs())}
        self._out = {name: f"out{i}" for i, name in enumerate(step.graph_outputs())}
        self._shapes = {name: array.shape for name, array in first.items()}
        self._mats = {name: self._mat(name, array) for name, array in first.items()}
        self._carried = [(spec.name, self._out[spec.next_name]) for spec in step.states]
        self._outputs = [(spec.name, self._out[spec.name], spec.shape) for spec in step.outputs]
        self.engine = f"ncnn {version('ncnn')}"

    def _mat(self, name: str, array: Array) -> ncnn.Mat:
        shape = self._shapes[name]
        return ncnn.Mat(array.reshape(shape[1:] if len(shape) > 1 else shape)).clone()

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        self._mats |= {name: self._mat(name, array) for name, array in inputs.items()}
        with self._net.create_extractor() as extractor:
            for name, blob in self._in.items():
                extractor.input(blob, self._mats[name])
            results = [extractor.extract(blob) for _, blob, _ in self._outputs]
            after = [extractor.extract(blob) for _, blob in self._carried]
        if any(code != 0 for code, _ in (*results, *after)):
            raise MeasurementError("ncnn cannot compute a step of this graph")
        self._mats |= {name: mat for (name, _), (_, mat) in zip(self._carried, after, strict=True)}
        return {
            name: np.array(mat).reshape(shape)
            for (name, _, shape), (_, mat) in zip(self._outputs, results, strict=True)
        }


def _convert(graph: Path) -> None:
    spec = find_spec("pnnx")
    assert spec is not None and spec.origin is not None
    tool = Path(spec.origin).parent / "pnnx"
    words = [str(tool / "pnnx" if tool.is_dir() else tool), graph.name, "fp16=0"]
    done = subprocess.run(words, cwd=graph.parent, capture_output=True, text=True)
    if done.returncode != 0 or not graph.with_suffix(".ncnn.param").exists():
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise MeasurementError("pnnx refuses the graph", found=" ".join(last))


open_peer = Ncnn
