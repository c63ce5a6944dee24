"""The torch module through LiteRT's converter and interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import litert_torch
from ai_edge_litert.interpreter import Interpreter

from lab.peers.aura_torch import AuraStep, example
from lab.peers.base import Peer
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array


class LiteRT(Peer):
    """Converted in this process; inputs and outputs are matched by their shapes."""

    def __init__(self, bundle: str) -> None:
        converted = litert_torch.convert(AuraStep(bundle).eval(), example())
        with scratch_folder() as folder:
            path = Path(folder) / "step.tflite"
            converted.export(str(path))
            interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
        interpreter.allocate_tensors()
        inputs_of = self._by_shape(interpreter.get_input_details())
        outputs_of = self._by_shape(interpreter.get_output_details())
        _, S, b = (tensor.numpy() for tensor in example())
        self._S, self._b = S, b
        self._calls = (interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor)
        shapes = ((1, 64), S.shape, b.shape, (1, 8))
        self._at = (*(inputs_of[s] for s in shapes[:3]), *(outputs_of[s] for s in shapes[1:]))
        self.engine = f"litert {version('ai-edge-litert')}"

    @staticmethod
    def _by_shape(details: list[dict[str, Array]]) -> dict[tuple[int, ...], int]:
        return {tuple(detail["shape"].tolist()): int(detail["index"]) for detail in details}

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step, written out: a loop over names would be a sixth of what LiteRT itself takes."""
        put, invoke, get = self._calls
        z, S, b, next_S, next_b, action = self._at
        put(z, inputs["z"])
        put(S, self._S)
        put(b, self._b)
        invoke()
        self._S, self._b = get(next_S), get(next_b)
        return {"action": get(action)}


open_peer = LiteRT
