"""What the session asks of an engine, and which engine a bundle gets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from stategate.contract import Bundle
from stategate.contract.chunks import chunked
from stategate.contract.errors import (
    EngineError,
    EngineFallbackWarning,
    MissingDependencyError,
    RuntimeFault,
    SpecError,
)
from stategate.contract.manifest import GraphRef
from stategate.contract.split import read_signature, write_signature
from stategate.runtime.base.buffers import Array, Buffers, Group
from stategate.runtime.base.process import give_back_freed_memory
from stategate.runtime.trust.accepted import Accepted, accepted

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
    """Computes one step from bound buffers into bound buffers, in one go or in two.

    Attributes:
        name: Engine and version, for reports.
    """

    name: str

    def run(self, parity: int) -> bool:
        """Compute what every step needs: outputs, gates, the states that no hard gate guards.

        An engine that computes the step in one go computes the guarded states here as well.

        Args:
            parity: Bit mask over ``Buffers.groups``; a set bit means that the group's states are
                read from bank 1 and written to bank 0, a clear bit the other way round.

        Returns:
            Whether it has seen that every output and gate is finite; False where it has not looked.
        """
        ...

    def write(self, parity: int) -> None:
        """Compute the guarded next states of the step that `run` has just computed.

        Called only where a gate is open and the write is allowed; with nothing to do where `run`
        has done it.

        Args:
            parity: As it was in `run`.
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


@runtime_checkable
class Filling(Protocol):
    """An engine that takes the inputs itself, and refuses in `Engine.run` what is not finite.

    Attributes:
        fill: Copies every input into its buffer and returns 0; anything else where they are not
            quite what the manifest says, for somebody else to tell why, or to copy them all the
            same.
    """

    fill: Callable[[dict[str, Array]], int]


@runtime_checkable
class Chaining(Protocol):
    """An engine that takes states into a chain of hashes faster than NumPy does."""

    def chaining(self) -> Callable[[int, int], int] | None:
        """Takes a chain and a parity, and returns the chain with the live states; None: NumPy."""
        ...


def open_engine(
    bundle: Bundle,
    buffers: Buffers,
    graph: GraphRef | None = None,
    choice: EngineChoice = "auto",
    accepts: Accepted | None = None,
) -> Engine:
    """Load the engine for a graph; its library is imported here and not before.

    Args:
        bundle: Where the graph's file is.
        buffers: What it shall compute from and into.
        graph: One of the bundle's that computes everything in one go; if left out, the step in
            the way of the manifest.
        choice: Which engine steps; ``auto`` is the faster one by the bundle's own measurement,
            where this machine can load it. Of several, separated by commas, the first that can
            be had, with a warning for each before it. A chunk graph runs in onnxruntime.
        accepts: What this machine accepts of the bundle; asked here where it is None.
    """
    unknown = sorted(set(choice.split(",")) - set(ENGINES))
    if unknown:
        raise SpecError("unknown engine", found=unknown, expected=", ".join(ENGINES))
    accepts = accepts or accepted(bundle)
    if choice == "auto" and accepts.engines and "onnxruntime" not in accepts.engines:
        choice = ",".join(accepts.engines)
    engine = _open(bundle, buffers, graph, choice, accepts)
    give_back_freed_memory()  # what was read and parsed is several times the graph
    return engine


def _open(
    bundle: Bundle,
    buffers: Buffers,
    graph: GraphRef | None,
    choice: EngineChoice,
    accepts: Accepted,
) -> Engine:
    first, _, others = choice.partition(",")
    if others:
        try:
            return _open(bundle, buffers, graph, first, accepts)
        except (RuntimeFault, MissingDependencyError) as problem:
            warnings.warn(
                f"{first} cannot be had, trying {others}: {problem}",
                EngineFallbackWarning,
                stacklevel=3,
            )
            return _open(bundle, buffers, graph, others, accepts)
    manifest, spec = bundle.manifest, bundle.manifest.step
    one_step = graph is None or graph.role == "step"
    if accepts.engines and choice.partition("-")[0] not in ("auto", *accepts.engines):
        raise EngineError(
            "the policy of this machine does not let this engine step the bundle",
            found=choice,
            expected=", ".join(accepts.engines),
        )
    if one_step and choice == "tensorrt":
        from stategate.runtime.engines.tensorrt import open_tensorrt

        return open_tensorrt(bundle, buffers)
    if one_step and choice in ("auto", "native"):
        from stategate.common.c_library import load_obstacle

        native = manifest.native
        if native is None and choice == "native":
            raise EngineError(
                "this bundle has no native engine",
                expected="C source in it",
                remedy="stategate export MODEL --engines onnxruntime,native",
            )
        prefers_native = native is not None and (
            choice == "native" or (native.fastest == "native" and load_obstacle(native) is None)
        )
        if prefers_native and choice == "auto" and accepts.refusal is not None:
            warnings.warn(
                f"stepping with onnxruntime, which is slower here: {accepts.refusal}\n"
                f"  what to do: {accepts.remedy}",
                EngineFallbackWarning,
                stacklevel=4,
            )
        elif native is not None and prefers_native:
            from stategate.runtime.engines.native import NativeEngine

            return NativeEngine(bundle, native, buffers)
    from stategate.runtime.engines.ort import OrtEngine, OrtGraph

    provider = _PROVIDERS.get(choice, _PROVIDERS["onnxruntime"])
    way, read, write = manifest.way, manifest.graph_of("read"), manifest.graph_of("write")
    if graph is not None or way is None or read is None:
        graph = graph or manifest.step_graph
        spec = chunked(spec, graph.steps) if graph.steps > 1 else spec
        whole = (spec.graph_inputs(), spec.graph_outputs())
        return OrtEngine(OrtGraph(bundle, graph, whole, buffers, provider))
    # Where there is no graph to write with, the whole step is taken again.
    second, signature = (
        (write, write_signature(spec, way))
        if write is not None
        else (manifest.step_graph, (spec.graph_inputs(), spec.graph_outputs()))
    )
    return OrtEngine(
        OrtGraph(bundle, read, read_signature(spec, way), buffers, provider),
        OrtGraph(bundle, second, signature, buffers, provider),
    )
