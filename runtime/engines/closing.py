"""What steps with an engine until it is closed, by a call or by leaving a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

from stategate.contract.errors import RuntimeFault
from stategate.runtime.engines.engine import Engine

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """A context manager that holds an engine while it is open."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine

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

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
