"""A session: one model, one stream, one memory, stepped for ever.

with Session.open("build/aura") as session:
    for observation in robot:
        action = session.step(z=observation)["action"]
    print(session.ledger)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from stategate.contract import Bundle, Manifest
from stategate.contract.errors import (
    EngineError,
    PoolBundleError,
    SessionClosedError,
    StateFault,
    UnknownInputError,
)
from stategate.runtime.buffers import Array, Buffers, Group, Slot, initial_bytes, is_finite
from stategate.runtime.engine import Engine, open_engine
from stategate.runtime.feeds import Feeds
from stategate.runtime.ledger import Counters, Ledger


class Session:
    """Steps a bundle and counts what its memory does.

    Not thread-safe: one session is one stream. Make one with `Session.open`.
    """

    def __init__(self, bundle: Bundle, buffers: Buffers, engine: Engine) -> None:
        self._bundle = bundle
        self._buffers = buffers
        self._engine: Engine | None = engine
        self._counters = Counters()
        self._parity = 0
        # Looked up once: the step itself touches only these.
        self._feeds = Feeds(buffers.inputs)
        self._gated = tuple(g for g in buffers.groups if g.gate is not None)
        self._always = next((g for g in buffers.groups if g.gate is None), None)
        self._thresholds = tuple(
            np.float32(g.gate.threshold) for g in self._gated if g.gate is not None
        )
        self._outputs = MappingProxyType({s.name: s.array for s in buffers.outputs})
        self._gates = MappingProxyType({s.name: s.array for s in buffers.gates})

    @classmethod
    def open(cls, path: str | Path) -> Session:
        """Open a bundle: check every digest, allocate every buffer, load the engine.

        Args:
            path: The bundle's folder.

        Raises:
            BundleError: A file is missing, altered, or outside the folder.
            PoolBundleError: The bundle serves several sessions; `Pool` opens it.
            ManifestError: The manifest is malformed or of another schema version.
            EngineError: The graph cannot be loaded, or is not what the manifest says.
            MissingDependencyError: The engine's library is not installed.
        """
        bundle = Bundle.open(path)
        if bundle.manifest.sessions != 1:
            raise PoolBundleError(
                "this is a pool bundle, which a single session cannot step",
                found=f"{bundle.manifest.sessions} sessions in each step of {path}",
                expected="a bundle for one session",
                remedy="open it with stategate.runtime.Pool.open(path), or export the model again "
                "without --sessions",
            )
        buffers = Buffers.allocate(bundle.manifest, initial_bytes(bundle))
        return cls(bundle, buffers, open_engine(bundle, buffers))

    @property
    def manifest(self) -> Manifest:
        """What the bundle promises."""
        return self._bundle.manifest

    @property
    def bundle_digest(self) -> str:
        """Identity of the bundle."""
        return self._bundle.digest

    @property
    def engine_name(self) -> str:
        """Engine and version."""
        return self._open_engine().name

    @property
    def ledger(self) -> Ledger:
        """The counters as they stand."""
        return self._counters.read()

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The mapping that every `step` returns."""
        return self._outputs

    @property
    def gates(self) -> Mapping[str, Array]:
        """Gate values of the last step by name; views of fixed buffers, as in `step`."""
        return self._gates

    def state(self, name: str) -> Array:
        """A copy of one state as the next step will see it.

        Raises:
            UnknownInputError: There is no state of that name.
        """
        for state in self._buffers.states:
            if state.spec.name == name:
                live = bool(self._parity & self._buffers.bit_of(state))
                return state.banks[live].array.copy()
        raise UnknownInputError(
            f"there is no state {name!r}",
            expected=", ".join(s.spec.name for s in self._buffers.states),
        )

    def step(self, **inputs: Array) -> Mapping[str, Array]:
        """One step of the model.

        Inputs are copied in; nothing of the caller's is kept. If anything is raised, the state is
        the one before the call.

        Args:
            **inputs: One array for each input of the manifest, of its shape and dtype.

        Returns:
            Outputs by name. The mapping and its arrays are the same objects after every step:
            the next step overwrites them, so copy what must outlive it.

        Raises:
            StepInputError: An input is missing, unknown, of the wrong shape or dtype, or not
                finite (each has its own subclass).
            EngineError: The engine failed.
            StateFault: A gate or a next state is not finite; the write was refused.
            SessionClosedError: The session was closed.
        """
        engine = self._engine
        if engine is None:
            raise _closed()
        self._feeds.take(inputs)
        counters = self._counters
        try:
            engine.run(self._parity)
        except EngineError:
            counters.faults += 1
            raise
        swaps = nbytes = 0
        opened = not self._gated
        for group, threshold in zip(self._gated, self._thresholds, strict=True):
            gate: Any = group.gate_slot.flat if group.gate_slot is not None else None
            value = gate[0] if gate.size == 1 else gate.max()
            if not (isfinite(value) if gate.size == 1 else is_finite(gate)):
                self._refuse(group.gate_slot, "a gate")
            if value > threshold:
                opened = True
                swaps |= group.bit
                nbytes += group.nbytes
                self._check_next(group)
        if self._always is not None:
            swaps |= self._always.bit
            nbytes += self._always.nbytes
            self._check_next(self._always)
        self._parity ^= swaps
        counters.steps += 1
        counters.memory_bytes_written += nbytes
        if opened:
            counters.writes += 1
        else:
            counters.quiet_steps += 1
        return self._outputs

    def _check_next(self, group: Group) -> None:
        live = bool(self._parity & group.bit)
        for state in group.states:
            slot = state.banks[not live]
            if not is_finite(slot.flat):
                self._refuse(slot, "the next state")

    def _refuse(self, slot: Slot | None, what: str) -> None:
        self._counters.steps += 1
        self._counters.suppressed_writes += 1
        self._counters.faults += 1
        raise StateFault(
            f"{what} {slot.name if slot else ''!r} holds NaN or Inf; the write was refused",
            found=f"in step {self._counters.steps}",
            expected="finite numbers",
            remedy="the state before this step is in place: go on, or call reset()",
        )

    def reset(self) -> None:
        """Put every state back to its initial value; counters go on.

        Raises:
            SessionClosedError: The session was closed.
        """
        self._open_engine()
        for state in self._buffers.states:
            for bank in state.banks:
                np.copyto(bank.array, state.initial)
        self._counters.resets += 1

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise _closed()
        return self._engine

    def close(self) -> None:
        """Free the engine; a second call does nothing. The ledger can still be read."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _closed() -> SessionClosedError:
    return SessionClosedError(
        "the session is closed", remedy="open another one: Session.open(path)"
    )
