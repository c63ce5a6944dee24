"""Who runs beside our engines: those that step AURA-Mem, and those that step any bundle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stategate.contract import Bundle


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to step the bundle.

    Attributes:
        name: In the table.
        maker: What opens it.
        more: What that is given beside the bundle.
        env: Folder of its environment below the one of all; empty for this one.
        is_runtime: It is a runtime for any model, and not written by hand or generated for one.
        compresses: It is given the float32 bundle too, as ``source``, and makes its own integers
            of that; it does not run where there is none.
    """

    name: str
    maker: str
    more: dict[str, Any] = field(default_factory=dict)
    env: str = ""
    is_runtime: bool = False
    compresses: bool = False


def _peer(name: str, module: str, env: str, **more: Any) -> Entry:
    return Entry(name, f"lab.peers.{module}:open_peer", more, env)


def _runtime(name: str, module: str, env: str, **more: Any) -> Entry:
    return replace(_peer(name, module, env, **more), is_runtime=True)


def _own(name: str, module: str, env: str, **more: Any) -> Entry:
    return replace(_runtime(f"{name}, its own int8", module, env, **more), compresses=True)


PEERS = (
    _peer("C by hand, quiet", "in_c", "floor", by_hand=True, held="shut"),
    _peer("C by hand, write", "in_c", "floor", by_hand=True, held="open"),
    _peer("C by hand, through ctypes", "in_c", "floor", by_hand=True),
    _peer("C generated, quiet", "in_c", "", held="shut"),
    _peer("C generated, write", "in_c", "", held="open"),
    _peer("numpy", "aura_numpy", "floor"),
    _runtime("onnxruntime, run", "onnx_runtime", "onnxruntime"),
    _runtime("onnxruntime, bound", "onnx_runtime", "onnxruntime", bound=True),
    _runtime("torch eager", "aura_torch", "torch"),
    _runtime("torch compile", "aura_torch", "torch", compiled=True),
    _runtime("executorch", "executorch_portable", "executorch"),
    _runtime("openvino, stateful", "openvino_stateful", "openvino"),
    _runtime("litert", "litert", "litert"),
    _runtime("mnn", "mnn", "mnn"),
)

# From the bundle's graph, whatever the model; converters that start from torch take a float32 one.
OF_GRAPHS = (
    _runtime("onnxruntime, run", "onnx_runtime", "onnxruntime"),
    _runtime("onnxruntime, bound", "onnx_runtime", "onnxruntime", bound=True),
    _runtime("torch compile", "graph_torch", "torch", compiled=True),
    _own("torch compile", "graph_torch", "torch", compiled=True),
    _runtime("openvino, stateful", "openvino_stateful", "openvino"),
    _own("openvino, stateful", "openvino_stateful", "openvino"),
    _runtime("litert", "graph_litert", "litert"),
    _own("litert", "graph_litert", "litert"),
    _runtime("mnn", "mnn", "mnn"),
    _own("mnn", "mnn", "mnn"),
)


def peers_of(bundle: Bundle, source: Path | None = None) -> tuple[Entry, ...]:
    """Everybody who can be tried on a bundle.

    Args:
        bundle: What is stepped.
        source: The same model in float32, for those that make their own integers of it.
    """
    if bundle.manifest.model.family == "aura":
        return PEERS
    source_path = {} if source is None else {"source": str(source)}
    return tuple(
        replace(entry, more=entry.more | source_path) if entry.compresses else entry
        for entry in OF_GRAPHS
        if source_path or not entry.compresses
    )
