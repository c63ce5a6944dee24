"""Who runs beside our engines, and the shapes of `make bench-native`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.peers.in_c import instruction_sets


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
        group: Who is compared with it: all that are timed in a loop of C, with one instruction set
            and the gate held alike. Empty for who is stepped from Python.
        is_generated: It is the generated C.
    """

    name: str
    maker: str
    more: dict[str, Any] = field(default_factory=dict)
    env: str = ""
    is_runtime: bool = False
    compresses: bool = False
    group: str = ""
    is_generated: bool = False


def _runtime(name: str, module: str, env: str, **more: Any) -> Entry:
    return Entry(name, f"lab.peers.{module}:open_peer", more, env, is_runtime=True)


def _own(name: str, module: str, env: str, **more: Any) -> Entry:
    return replace(_runtime(f"{name}, its own int8", module, env, **more), compresses=True)


def _in_c(policy: str | None = None) -> tuple[Entry, ...]:
    """The generated C and those by hand, at each instruction set: of a policy, or of AURA-Mem."""
    gates = {"quiet": "shut", "write": "open"} if policy is None else {"": "open"}
    forms = {"generated": "generated", "by hand": "rows"} | ({"Eigen": "eigen"} if policy else {})
    entries = []
    for isa in instruction_sets():
        for gate, position in gates.items():
            group = ", ".join(filter(None, (gate, isa)))
            for name, form in forms.items():
                more = {"form": form, "held": position, "isa": isa, "policy": policy}
                entry = Entry(f"C {name}, {group}", "lab.peers.in_c:open_peer", more, group=group)
                entries.append(replace(entry, is_generated=form == "generated"))
    return tuple(entries)


ONNX_RUNTIME = (
    _runtime("onnxruntime, run", "onnx_runtime", "onnxruntime"),
    _runtime("onnxruntime, bound", "onnx_runtime", "onnxruntime", bound=True),
)
# They take a graph as it lies in the bundle.
_OF_FILES = (
    *ONNX_RUNTIME,
    _runtime("openvino, stateful", "openvino_stateful", "openvino"),
    _runtime("mnn", "mnn", "mnn"),
    _runtime("tract", "tract_runtime", "tract"),
    _runtime("ncnn", "ncnn_runtime", "ncnn"),
)
PEERS = (
    *_in_c(),
    Entry("C by hand, through ctypes", "lab.peers.in_c:open_peer", {"form": "rows"}),
    Entry("numpy", "lab.peers.aura_numpy:open_peer"),
    *_OF_FILES,
    _runtime("torch eager", "aura_torch", "torch"),
    _runtime("torch compile", "aura_torch", "torch", compiled=True),
    _runtime("executorch", "executorch_portable", "executorch"),
    _runtime("litert", "litert", "litert"),
    _runtime("tflite-micro", "graph_litert", "litert", micro=True),
)
# Whatever the model; converters that start from torch take a float32 one.
OF_GRAPHS = (
    *_OF_FILES,
    _runtime("torch compile", "graph_torch", "torch", compiled=True),
    _runtime("litert", "graph_litert", "litert"),
    _runtime("tflite-micro", "graph_litert", "litert", micro=True),
    _own("torch compile", "graph_torch", "torch", compiled=True),
    _own("openvino, stateful", "openvino_stateful", "openvino"),
    _own("litert", "graph_litert", "litert"),
    _own("mnn", "mnn", "mnn"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A row of the race, or a row for each instruction set.

    Attributes:
        peers: Who runs beside our engines.
        rounds: Bursts of each.
        burst: Steps of a burst.
        source: The shape that is the same model in float32; others round weights by themselves,
            and may be further from the golden answers.
        bars: At most so many times the time of a peer, by how its name begins; the first that fits.
        cannot: Peers that are not tried, and why.
    """

    peers: tuple[Entry, ...]
    rounds: int = 16
    burst: int = 2000
    source: str = ""
    bars: dict[str, float] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)


def _policy(name: str, bars: dict[str, float]) -> Shape:
    return Shape((*_in_c(name), *_OF_FILES), rounds=24, burst=500, bars=bars)


# At 512 bits a row is summed about as fast as a panel is, at 128 and 256 bits it is not.
_OF_256 = {"C by hand, x86-64-v4": 1.0, "C by hand": 0.7, "onnxruntime": 0.6}
_ADOPTED = Shape(ONNX_RUNTIME, burst=200, bars={"onnxruntime": 1 / 1.5})
_STACK = Shape(OF_GRAPHS, rounds=12, burst=50, bars={"": 1.0})
_ROUNDED = replace(_STACK, source="stack-float32")
SHAPES = {
    "aura": Shape(
        PEERS,
        bars={"C by hand": 0.8, "": 0.2},
        cannot={"ncnn": "it does not load what its converter makes of this graph"},
    ),
    "lstm-64": _policy("lstm_64", {"C Eigen": 0.9}),
    "gru-64": _policy("gru_64", {"C Eigen": 0.8}),
    "lstm-256": _policy("lstm_256", _OF_256),
    "gru-256": _policy("gru_256", _OF_256),
    "conv-gru": Shape(ONNX_RUNTIME, burst=50, bars={"onnxruntime": 1.3}),
    "silero": _ADOPTED,
    "gtcrn": _ADOPTED,
    "dtln-1": _ADOPTED,
    "dtln-2": _ADOPTED,
    "stack-float32": _STACK,
    "stack-int8-weights": _ROUNDED,
    "stack-int8-all": _ROUNDED,
}


def entrants(shape: Shape, source: Path | None) -> tuple[Entry, ...]:
    """Who is tried on a shape, given the bundle of the same model in float32 where there is one."""
    return tuple(
        replace(entry, more=entry.more | {"source": str(source)}) if entry.compresses else entry
        for entry in shape.peers
        if (source is not None or not entry.compresses) and entry.name not in shape.cannot
    )
