"""The native engine without a session: what a session adds is the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.peers.base import Always
from stategate.contract import Bundle
from stategate.contract.errors import EngineError, MeasurementError
from stategate.contract.write_rule import opens_number
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.native import NativeEngine
from stategate.runtime.engines.opening import allocate


class EngineSubject:
    """The native engine's call on bound buffers, with no session around it.

    A step copies the inputs in, computes, and swaps the banks that an open gate has written;
    nothing is counted, and only the inputs are looked at for NaN, which the engine's C does.

    Raises:
        EngineError: The bundle has no native engine for this machine.
    """

    def __init__(self, bundle: str) -> None:
        opened = Bundle.open(bundle)
        native = opened.manifest.native
        if native is None:
            raise EngineError(
                "the bundle has no native engine", remedy="stategate device build-native BUNDLE"
            )
        buffers = allocate(opened)
        engine, self._parity = NativeEngine(opened, native, buffers), 0
        self._fill, self._run = engine.fill, engine.run
        self.engine = f"{engine.name}, no session"
        self._outputs = {slot.name: slot.array for slot in buffers.outputs}
        self._gates: list[tuple[int, Sequence[float], float]] = []
        for group in buffers.groups:
            if group.gate is None or group.gate_slot is None:
                self._gates.append((group.bit, (1.0,), 0.0))
            else:
                live = memoryview(group.gate_slot.flat.data)  # one that is open opens all
                self._gates.append((group.bit, live, float(np.float32(group.gate.threshold))))

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        if self._fill(inputs):
            raise MeasurementError("the inputs are not what the manifest says")
        self._run(self._parity)
        for bit, gate, threshold in self._gates:
            if opens_number(max(gate), threshold):
                self._parity ^= bit
        return self._outputs

    def writes(self, timed: int) -> Always:
        """Not counted."""
        return Always()

    def ledger(self) -> dict[str, Any]:
        """Not counted."""
        return {}
