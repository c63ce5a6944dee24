"""The torch module through ExecuTorch, with its portable kernels and explicit states."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import torch
from executorch.exir import to_edge
from executorch.runtime import Runtime

from lab.peers.aura_torch import AuraStep, example
from lab.peers.base import Peer
from stategate.runtime.base.buffers import Array


class Portable(Peer):
    """Exported in this process, loaded by its runtime."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(1)
        exported = torch.export.export(AuraStep(bundle).eval(), example(), strict=True)
        program = to_edge(exported).to_executorch().buffer
        self._program = Runtime.get().load_program(program)  # must outlive its method
        self._method = self._program.load_method("forward")
        self._states = example()[1:]
        self.engine = f"executorch {version('executorch')} portable"

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        results = self._method.execute([torch.from_numpy(inputs["z"]), *self._states])
        # Results are views of the runtime's own memory, which the next step overwrites.
        self._states = tuple(value.clone() for value in results[1:])
        return {"action": results[0].numpy()}


open_peer = Portable
