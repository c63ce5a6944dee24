"""Faults on purpose: an engine that fails in chosen steps, for tests of programs on top.

inject(session, {10: "engine", 25: "state"})   # the 10th and the 25th step from now on
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from stategate.contract.errors import EngineError, SpecError
from stategate.runtime.base.buffers import Buffers
from stategate.runtime.engines.engine import Engine, Resident
from stategate.runtime.session import Session

Fault = Literal["engine", "state", "gate", "output"]
_FAULTS = ("engine", "state", "gate", "output")


class FaultyEngine:
    """Runs another engine and spoils some of its steps.

    ``engine`` fails before anything is computed; ``state``, ``gate`` and ``output`` put a NaN into
    the first element of the first next state, gate or output.
    """

    def __init__(self, inner: Engine, buffers: Buffers, plan: Mapping[int, Fault]) -> None:
        """Wrap an engine."""
        self.name = f"{inner.name}, with faults"
        self._inner, self._buffers, self._plan = inner, buffers, dict(plan)
        self._step = 0
        for fault in self._plan.values():
            if fault not in _FAULTS:
                raise SpecError("unknown fault", found=fault, expected=", ".join(_FAULTS))
            if fault == "gate" and not buffers.gates:
                raise SpecError("the model has no gate to spoil")
            if fault == "state" and isinstance(inner, Resident):
                raise SpecError("the states are on the GPU, and cannot be spoilt from here")
            if fault == "state" and buffers.states[0].spec.dtype[:5] != "float":
                raise SpecError("the first state is no float, and cannot be NaN")

    def run(self, parity: int) -> bool:
        """Compute one step, or fail as planned; see `Engine.run`."""
        self._step += 1
        fault = self._plan.get(self._step)
        if fault == "engine":
            raise EngineError("the engine failed on purpose", found=f"in step {self._step}")
        self._inner.run(parity)
        if fault == "state":
            self._spoil_state(parity)
        elif fault == "gate":
            self._buffers.gates[0].flat[0] = np.nan
        elif fault == "output":
            self._buffers.outputs[0].flat[0] = np.nan
        return False

    def write(self, parity: int) -> None:
        """Compute the guarded next states, spoiled as planned; see `Engine.write`."""
        self._inner.write(parity)
        if self._plan.get(self._step) == "state":
            self._spoil_state(parity)

    def _spoil_state(self, parity: int) -> None:
        state = self._buffers.states[0]
        live = bool(parity & self._buffers.bit_of(state))
        state.target(live).flat[0] = np.nan

    def close(self) -> None:
        """Close the engine that really computes."""
        self._inner.close()


def inject(session: Session, plan: Mapping[int, Fault]) -> None:
    """Spoil steps of an open session; see `FaultyEngine`."""
    session.replace_engine(lambda engine, buffers: FaultyEngine(engine, buffers, plan))
