"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

from typing import Protocol

from stategate.contract import Bundle, GraphRef, chunked, read_signature, write_signature
from stategate.runtime.buffers import Buffers


class Engine(Protocol):
    """Computes one step from bound buffers into bound buffers, in one go or in two.

    Attributes:
        name: Engine and version, for reports.
    """

    name: str

    def run(self, parity: int) -> None:
        """Compute what every step needs: outputs, gates, the states that no hard gate guards.

        An engine that computes the step in one go computes the guarded states here as well.

        Args:
            parity: Bit mask over ``Buffers.groups``; a set bit means that the group's states are
                read from bank 1 and written to bank 0, a clear bit the other way round.

        Raises:
            EngineError: The step failed. Banks that are being read are untouched.
        """
        ...

    def write(self, parity: int) -> None:
        """Compute the guarded next states of the step that `run` has just computed.

        Called only where a gate is open and the write is allowed; with nothing to do where `run`
        has done it.

        Args:
            parity: As it was in `run`.

        Raises:
            EngineError: It failed. Banks that are being read are untouched.
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
        graph: One of the bundle's that computes everything in one go; if left out, the step in
            the way of the manifest.

    Raises:
        EngineError: The graph cannot be loaded, or is not what the manifest says.
        MissingDependencyError: The engine's library is not installed.
    """
    from stategate.runtime.ort import OrtEngine, OrtGraph

    manifest, spec = bundle.manifest, bundle.manifest.step
    way, read = manifest.way, manifest.graph_of("read")
    if graph is not None or way is None or read is None:
        graph = graph or manifest.step_graph
        spec = chunked(spec, graph.steps) if graph.steps > 1 else spec
        whole = (spec.graph_inputs(), spec.graph_outputs())
        return OrtEngine(OrtGraph(bundle, graph, whole, buffers))
    write = manifest.graph_of("write")
    return OrtEngine(
        OrtGraph(bundle, read, read_signature(spec, way), buffers),
        OrtGraph(bundle, write, write_signature(spec, way), buffers)
        if write is not None
        else OrtGraph(
            bundle, manifest.step_graph, (spec.graph_inputs(), spec.graph_outputs()), buffers
        ),
    )
