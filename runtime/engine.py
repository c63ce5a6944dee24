"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

from typing import Protocol

from stategate.contract import Bundle, GraphRef, chunked
from stategate.runtime.buffers import Buffers


class Engine(Protocol):
    """Computes one step from bound buffers into bound buffers.

    Attributes:
        name: Engine and version, for reports.
    """

    name: str

    def run(self, parity: int) -> None:
        """Compute one step.

        Args:
            parity: Bit mask over ``Buffers.groups``; a set bit means that the group's states are
                read from bank 1 and written to bank 0, a clear bit the other way round.

        Raises:
            EngineError: The step failed. Banks that are being read are untouched.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def open_engine(bundle: Bundle, buffers: Buffers, graph: GraphRef | None = None) -> Engine:
    """Load the engine for a graph; its library is imported here and not before.

    Args:
        bundle: Where the graph's file is.
        buffers: What it shall compute from and into.
        graph: One of the bundle's; that of the step if left out.

    Raises:
        EngineError: The graph cannot be loaded, or is not what the manifest says.
        MissingDependencyError: The engine's library is not installed.
    """
    from stategate.runtime.ort import OrtEngine

    graph, spec = graph or bundle.manifest.step_graph, bundle.manifest.step
    return OrtEngine(
        bundle, graph, chunked(spec, graph.steps) if graph.steps > 1 else spec, buffers
    )
