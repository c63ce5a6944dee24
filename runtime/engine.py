"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

import warnings
from typing import Protocol, runtime_checkable

from stategate.contract import Bundle, GraphRef, chunked
from stategate.contract.errors import (
    EngineError,
    EngineFallbackWarning,
    MissingDependencyError,
    RuntimeFault,
    SpecError,
)
from stategate.contract.native import why_not_here
from stategate.runtime.buffers import Buffers, Group

# One of `ENGINES`, or several separated by commas, to be tried in that order.
EngineChoice = str
# ONNX Runtime's name for where a graph runs, by the name of the engine.
_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
ENGINES = ("auto", "native", "tensorrt", *_PROVIDERS)


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


@runtime_checkable
class Resident(Protocol):
    """An engine that keeps states where the host does not see them."""

    def finite(self, group: Group, parity: int) -> bool:
        """Whether the next values of a group's states hold neither NaN nor infinity."""
        ...

    def fetch(self, parity: int) -> None:
        """Copy the live banks into those of the buffers."""
        ...

    def push(self, parity: int) -> None:
        """Copy the live banks of the buffers to where the engine keeps them."""
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
            where this machine can load it. Of several, separated by commas, the first that can
            be had, with a warning for each before it. A chunk graph runs in onnxruntime.

    Raises:
        SpecError: There is no engine of that name.
        EngineError: The graph cannot be loaded, or is not what the manifest says.
        MissingDependencyError: The engine's library is not installed.
    """
    first, _, others = choice.partition(",")
    if first not in ENGINES:
        raise SpecError("unknown engine", found=first, expected=", ".join(ENGINES))
    if others:
        try:
            return open_engine(bundle, buffers, graph, first)
        except (RuntimeFault, MissingDependencyError) as problem:
            warnings.warn(
                f"{first} cannot be had, trying {others}: {problem}",
                EngineFallbackWarning,
                stacklevel=2,
            )
            return open_engine(bundle, buffers, graph, others)
    manifest = bundle.manifest
    if graph is None and choice == "tensorrt":
        from stategate.runtime.engine_tensorrt import open_tensorrt

        return open_tensorrt(bundle, buffers)
    if graph is None and choice in ("auto", "native"):
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
    spec = chunked(spec, graph.steps) if graph.steps > 1 else spec
    provider = _PROVIDERS.get(choice, _PROVIDERS["onnxruntime"])
    return OrtEngine(bundle, graph, spec, buffers, provider)
