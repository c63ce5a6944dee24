"""The bundle's graph through MNN's converter and its session interface."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import MNN
import numpy as np

from lab.peers.base import Peer, fixed, states
from stategate.contract import Bundle
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array


class Mnn(Peer):
    """Host tensors are made once; a step copies the inputs in, and outputs and states out.

    With a ``source`` in float32, its weights in int8.
    """

    def __init__(self, bundle: str, source: str | None = None) -> None:
        opened = Bundle.open(source or bundle)
        more = ("--weightQuantBits", "8") if source is not None else ()
        with scratch_folder() as folder:
            self._net = MNN.Interpreter(str(_converted(opened, Path(folder), more)))
        self._session = self._net.createSession({"numThread": 1})
        input_tensors = self._net.getSessionInputAll(self._session)
        output_tensors = self._net.getSessionOutputAll(self._session)
        spec = opened.manifest.step
        fed = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in spec.inputs}
        inputs = {name: _host(a) for name, a in {**fed, **fixed(opened), **states(opened)}.items()}
        outputs = {t.name: _host(np.zeros(t.shape, t.dtype)) for t in spec.outputs}
        # What a step leaves as the next state is what the following one takes.
        carried = {state.next_name: inputs[state.name] for state in spec.states}
        # All inputs anew in each step: MNN lets intermediate results overwrite them.
        self._in = [(input_tensors[name], host) for name, host in inputs.items()]
        self._out = [(output_tensors[name], host) for name, host in (outputs | carried).items()]
        self._inputs = {name: inputs[name].getNumpyData() for name in fed}
        self._outputs = {name: host.getNumpyData() for name, host in outputs.items()}
        self.engine = f"MNN {MNN.version()}{', int8 weights' if more else ''}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._inputs[name][...] = array
        for tensor, host in self._in:
            tensor.copyFrom(host)
        self._net.runSession(self._session)
        for tensor, host in self._out:
            tensor.copyToHostTensor(host)
        return self._outputs


def _host(array: Array) -> Any:
    """A tensor of MNN's own memory, which `getNumpyData` is a view of, with these values."""
    return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)


def _converted(bundle: Bundle, folder: Path, more: tuple[str, ...]) -> Path:
    graph = bundle.path / bundle.manifest.step_graph.file.path
    tool, converted = Path(sys.executable).with_name("mnnconvert"), folder / "step.mnn"
    words = [
        "-f",
        "ONNX",
        "--modelFile",
        graph.resolve(),
        "--MNNModel",
        converted,
        "--bizCode",
        "step",
        *more,
    ]
    # mnnconvert runs `pip install -U` for a library of its own in whatever environment is on PATH:
    # with an empty PATH it finds no pip, and changes nobody's environment.
    subprocess.run(
        [str(word) for word in (sys.executable, tool, *words)],
        env={"PATH": ""},
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return converted


open_peer = Mnn
