"""The bundle's float32 graph through torch and LiteRT's converter: LiteRT, and tflite-micro."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litert_torch
import torch
from ai_edge_litert.interpreter import Interpreter

from lab.peers.base import Peer
from lab.peers.graph_torch import GraphStep, opening
from stategate.contract import Bundle
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array


class LiteRT(Peer):
    """Converted in this process; inputs and outputs are matched by their numbers."""

    def __init__(self, bundle: str, int8: bool) -> None:
        opened = Bundle.open(bundle)
        module, self._feeds, model = converted(opened, int8)
        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        self._in = _numbered(self._interpreter.get_input_details(), r"args_(\d+)", module.takes)
        self._out = _numbered(self._interpreter.get_output_details(), r"output_(\d+)", module.gives)
        self._carried = [(spec.name, spec.next_name) for spec in opened.manifest.states]
        self._outputs = [spec.name for spec in opened.manifest.outputs]
        how = ", int8 weights" if int8 else ""
        self.engine = f"litert {version('ai-edge-litert')}{how}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        self._feeds |= inputs
        for name, index in self._in.items():
            self._interpreter.set_tensor(index, self._feeds[name])
        self._interpreter.invoke()
        for name, next_name in self._carried:
            self._feeds[name] = self._interpreter.get_tensor(self._out[next_name])
        return {name: self._interpreter.get_tensor(self._out[name]) for name in self._outputs}


class Micro(Peer):
    """tflite-micro, whose tensors have the order of the graph's, with its reference kernels."""

    def __init__(self, bundle: str) -> None:
        from tflite_micro.python.tflite_micro import runtime

        opened = Bundle.open(bundle)
        module, self._feeds, model = converted(opened)
        self._interpreter = runtime.Interpreter.from_bytes(model, arena_size=2**24)
        self._at = {name: i for i, name in enumerate(module.gives)}
        self._carried = [(spec.name, spec.next_name) for spec in opened.manifest.states]
        self._outputs = [spec.name for spec in opened.manifest.outputs]
        self.engine = f"tflite-micro {version('tflite-micro')}"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        self._feeds |= inputs
        for i, array in enumerate(self._feeds.values()):
            self._interpreter.set_input(array, i)
        self._interpreter.invoke()
        for name, next_name in self._carried:
            self._feeds[name] = self._interpreter.get_output(self._at[next_name])
        return {name: self._interpreter.get_output(self._at[name]) for name in self._outputs}


def converted(bundle: Bundle, int8: bool = False) -> tuple[GraphStep, dict[str, Array], bytes]:
    """The graph in torch, what it takes in the first step in its order, and the .tflite file."""
    module = GraphStep(bundle).eval().requires_grad_(False)
    feeds = {name: opening(bundle)[name] for name in module.takes}
    example = tuple(torch.from_numpy(array) for array in feeds.values())
    with scratch_folder() as folder:
        path = Path(folder) / "step.tflite"
        litert_torch.convert(module, example).export(str(path))
        return module, feeds, (_in_int8(path) if int8 else path).read_bytes()


def _numbered(details: list[dict[str, Any]], number: str, names: list[str]) -> dict[str, int]:
    """Index of each tensor by its name, the converter having kept its number alone."""
    types = {}
    for detail in details:
        match = re.search(number, detail["name"])
        assert match is not None, detail["name"]
        types[names[int(match[1])]] = int(detail["index"])
    return types


def _in_int8(path: Path) -> Path:
    """With weights in int8, and activations in float32 that are quantised on the way."""
    from ai_edge_quantizer import quantizer, recipe

    converter = quantizer.Quantizer(str(path))
    converter.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    smaller = path.with_name("int8.tflite")
    converter.quantize().export_model(str(smaller))
    return smaller


def open_peer(bundle: str, source: str | None = None, micro: bool = False) -> Peer:
    """As it is; or in int8, made of ``source``; or in tflite-micro."""
    return Micro(bundle) if micro else LiteRT(source or bundle, source is not None)
