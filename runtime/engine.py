"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

from typing import Literal, Protocol

from stategate.contract import Bundle, GraphRef, chunked
from stategate.contract.errors import EngineError, SpecError
from stategate.contract.native import why_not_here
from stategate.runtime.buffers import Buffers

EngineChoice = Literal["auto", "onnxruntime", "native"]


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


def open_engine(
    bundle: Bundle,
    buffers: Buffers,
    graph: GraphRef | None = None,
    choice: EngineChoice = "auto",
) -> Engine:
    """Load the engine for a graph; its library is imported here and not before.

    Args:
        bundle: Where the graph's file is.
        buffers: What it shall compute from and into.
        graph: One of the bundle's; that of the step if left out.
        choice: Which engine steps; ``auto`` is the faster one by the bundle's own measurement,
            where this machine can load it. A chunk graph runs in onnxruntime.

    Raises:
        SpecError: There is no engine of that name.
        EngineError: The graph cannot be loaded, or is not what the manifest says.
        MissingDependencyError: The engine's library is not installed.
    """
    if choice not in ("auto", "onnxruntime", "native"):
        raise SpecError("unknown engine", found=choice, expected="auto, onnxruntime or native")
    manifest = bundle.manifest
    if graph is None and choice != "onnxruntime":
        native = manifest.native
        if native is None and choice == "native":
            raise EngineError(
                "this bundle has no native engine",
                expected="C source in it",
                remedy="stategate export MODEL --engines onnxruntime,native",
            )
        wanted = choice == "native" or (native is not None and native.fastest == "native")
        if native is not None and wanted and (choice == "native" or why_not_here(native) is None):
            from stategate.runtime.engine_native import NativeEngine

            return NativeEngine(bundle, native, buffers)
    from stategate.runtime.ort import OrtEngine

    graph, spec = graph or manifest.step_graph, manifest.step
    return OrtEngine(
        bundle, graph, chunked(spec, graph.steps) if graph.steps > 1 else spec, buffers
    )
