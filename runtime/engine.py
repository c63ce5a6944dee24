"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

from typing import Literal, Protocol

from stategate.contract import Bundle, GraphRef, chunked, read_signature, write_signature
from stategate.contract.errors import EngineError, SpecError
from stategate.contract.native import why_not_here
from stategate.runtime.buffers import Buffers

EngineChoice = Literal["auto", "onnxruntime", "native"]


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


def checks_inputs(engine: Engine) -> bool:
    """Whether an engine itself refuses inputs that are not finite; few do, and none that wraps."""
    return bool(getattr(engine, "checks_inputs", False))


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
        graph: One of the bundle's that computes everything in one go; if left out, the step in
            the way of the manifest.
        choice: Which engine steps; ``auto`` is the faster one by the bundle's own measurement,
            where this machine can load it. A chunk graph runs in onnxruntime.

    Raises:
        SpecError: There is no engine of that name.
        EngineError: The graph cannot be loaded, or is not what the manifest says.
        MissingDependencyError: The engine's library is not installed.
    """
    if choice not in ("auto", "onnxruntime", "native"):
        raise SpecError("unknown engine", found=choice, expected="auto, onnxruntime or native")
    manifest, spec = bundle.manifest, bundle.manifest.step
    if (graph is None or graph.role == "step") and choice != "onnxruntime":
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
    from stategate.runtime.ort import OrtEngine, OrtGraph

    way, read, write = manifest.way, manifest.graph_of("read"), manifest.graph_of("write")
    if graph is not None or way is None or read is None:
        graph = graph or manifest.step_graph
        spec = chunked(spec, graph.steps) if graph.steps > 1 else spec
        whole = (spec.graph_inputs(), spec.graph_outputs())
        return OrtEngine(OrtGraph(bundle, graph, whole, buffers))
    return OrtEngine(
        OrtGraph(bundle, read, read_signature(spec, way), buffers),
        OrtGraph(bundle, write, write_signature(spec, way), buffers)
        if write is not None
        else OrtGraph(
            bundle, manifest.step_graph, (spec.graph_inputs(), spec.graph_outputs()), buffers
        ),
    )
