"""The torch module through LiteRT's converter and interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import litert_torch
from ai_edge_litert.interpreter import Interpreter

from stategate.bench.peers.aura_torch import AuraStep, example
from stategate.bench.peers.base import Peer
from stategate.runtime.buffers import Array


class LiteRT(Peer):
    """Converted in this process; inputs and outputs are told apart by their shapes."""

    def __init__(self, bundle: str) -> None:
        converted = litert_torch.convert(AuraStep(bundle).eval(), example())
        with TemporaryDirectory() as folder:
            path = Path(folder) / "step.tflite"
            converted.export(str(path))
            self._interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
        self._interpreter.allocate_tensors()
        self._in = self._by_shape(self._interpreter.get_input_details())
        self._out = self._by_shape(self._interpreter.get_output_details())
        self._carried = [((1, 32, 32), example()[1].numpy()), ((1, 32), example()[2].numpy())]
        self.engine = f"litert {version('ai-edge-litert')}"

    @staticmethod
    def _by_shape(details: list[dict[str, Array]]) -> dict[tuple[int, ...], int]:
        return {tuple(detail["shape"].tolist()): int(detail["index"]) for detail in details}

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        interpreter = self._interpreter
        interpreter.set_tensor(self._in[1, 64], inputs["z"])
        for shape, value in self._carried:
            interpreter.set_tensor(self._in[shape], value)
        interpreter.invoke()
        self._carried = [(s, interpreter.get_tensor(self._out[s])) for s, _ in self._carried]
        return {"action": interpreter.get_tensor(self._out[1, 8])}


open_peer = LiteRT
