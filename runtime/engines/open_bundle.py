"""A bundle that is stepped with an engine until it is closed, by a call or by leaving ``with``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stategate.contract import Bundle, Manifest
from stategate.contract.errors import RuntimeFault
from stategate.runtime.base.buffers import Array
from stategate.runtime.base.closeable import Closeable
from stategate.runtime.engines.engine import Engine


class OpenBundle(Closeable):
    """A context manager that holds an engine while it is open."""

    def __init__(
        self, bundle: Bundle, engine: Engine, outputs: dict[str, Array], gates: dict[str, Array]
    ) -> None:
        self._bundle = bundle
        self._engine: Engine | None = engine
        self._engine_name = engine.name
        self._outputs, self._gates = MappingProxyType(outputs), MappingProxyType(gates)

    @property
    def manifest(self) -> Manifest:
        """What the bundle promises."""
        return self._bundle.manifest

    @property
    def bundle_digest(self) -> str:
        """SHA-256 of the manifest, which identifies the bundle."""
        return self._bundle.digest

    @property
    def engine_name(self) -> str:
        """Name and version of the engine."""
        return self._engine_name

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The mapping that every `step` returns."""
        return self._outputs

    @property
    def gates(self) -> Mapping[str, Array]:
        """Gate values of the last step by name; views of fixed buffers, as in `step`."""
        return self._gates

    def _open_engine(self) -> Engine:
        """The engine."""
        if self._engine is None:
            kind = type(self).__name__
            raise RuntimeFault(
                f"the {kind.lower()} is closed", remedy=f"open another one: {kind}.open(path)"
            )
        return self._engine

    def close(self) -> None:
        """Free the engine; a second call does nothing. Counters can still be read."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
