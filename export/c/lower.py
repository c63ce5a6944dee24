"""A step's graph as C99: what depends on a gate is cut off, and weights are kept apart.

Nodes that only a guarded state needs go into functions of their own, which run when the gate is
open: a quiet step then computes no next state and writes no byte of it. The cut needs no proof of
its own, because the same nodes run on the same tensors in either case.

Weights are not printed as text but kept as one binary that the assembler includes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from stategate.contract import ObservationContract, StepSpec, sha256
from stategate.contract.errors import GraphError, LowerError
from stategate.export.c.interface import INITIAL, interface, model_source
from stategate.export.c.part import Tensors, write_part
from stategate.export.c.rewrites import with_known_operators
from stategate.export.passes.graph import CONTROL_FLOW
from stategate.export.passes.pinned import pinned

Array = NDArray[Any]

WEIGHTS = "weights.bin"
_MOST_GATES = 63  # bits of a session's parity, but one for the states that no gate guards
# Operators that show what they take in another way; those that cannot are copies, and right.
_VIEWS = frozenset(("Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"))
# Functions of stategate_math.h that have no result for some integers.
_MAY_FAIL = (b"stategate_place(", b"stategate_quotient(", b"stategate_rest(")
_ALIGN = 64  # bytes of a cache line, and of the widest vector


@dataclass(frozen=True, slots=True)
class Source:
    """The C of a step: its files by name, and what of it is not the same on every machine."""

    files: dict[str, bytes]
    # operators whose last bits a C library or a compiler decides; without any, one digest of
    # outputs and states holds for every build
    inexact: tuple[str, ...]


def source_of(
    graph: bytes,
    spec: StepSpec,
    initial: Mapping[str, Array],
    observation: ObservationContract | None = None,
) -> Source:
    """The C source of a step: what all models share, the model, each part of it, the weights."""
    try:
        model = pinned(onnx.load_model_from_string(graph), spec)
    except GraphError as problem:
        raise LowerError("the graph is not written as C", found=problem) from problem
    if branches := sorted({node.op_type for node in model.graph.node} & CONTROL_FLOW):
        raise LowerError(
            "a node of the graph holds another graph, which is not written as C",
            found=", ".join(branches),
        )
    model = with_known_operators(model)
    hard = sum(gate.kind == "hard" for gate in spec.gates)
    if hard > _MOST_GATES:
        raise LowerError(
            "too many gates for a session in C", found=hard, expected=f"at most {_MOST_GATES}"
        )
    graph_sha256 = sha256(graph)
    tensors, cut = Tensors(model.graph), _Cut(model)
    weights = _Weights(initial)
    guarded = {
        f"write{i}": [s.next_name for s in spec.states if s.gate == gate.name]
        for i, gate in enumerate(spec.gates)
        if gate.threshold_input is not None
    }
    skipped = [name for names in guarded.values() for name in names]
    always = [name for name in spec.graph_outputs() if name not in skipped]
    # Whatever an output, a gate or an unguarded state needs runs in every step.
    reads = cut.above(always)
    # A next state that an output needs as well is there anyway.
    always += [name for name in skipped if cut.made_by(name, reads)]
    parts = {"read": (reads, always)}
    for part, names in guarded.items():
        rest = [name for name in names if name not in always]
        if rest:
            # What only shows a state or an input in another way costs nothing, and a payload does.
            parts[part] = ([n for n in cut.above(rest) if n not in reads or n in cut.views], rest)
    payload: dict[str, None] = {}  # a dict for its order: the C must not change from run to run
    for name, (nodes, _) in parts.items():
        if name != "read":
            payload |= dict.fromkeys(cut.payload_of(reads, nodes))
    files: dict[str, bytes] = {}
    functions = {}
    inexact = set[str]()
    for name, (nodes, names) in parts.items():
        gives = list(dict.fromkeys([*names, *payload])) if name == "read" else names
        chosen = [model.graph.node[i] for i in nodes]
        takes = cut.inputs_of(chosen)
        written = write_part(f"stategate_{name}", model, tensors, chosen, takes, gives)
        renamed = {weight: f"{name} {weight}" for weight in written.weights}
        for weight, array in written.weights.items():
            weights.add(renamed[weight], array)
        functions[name] = replace(
            written.function, takes=tuple(renamed.get(t, t) for t in written.function.takes)
        )
        inexact |= written.inexact
        files |= {file: text.encode() for file, text in written.files.items()}
    types = {name: (dtype, prod(shape)) for name in payload for dtype, shape in [tensors[name]]}
    may_fail = any(call in text for text in files.values() for call in _MAY_FAIL)
    if may_fail and not any("float" in t.dtype for t in spec.graph_outputs().values()):
        raise LowerError(
            "a lookup or a division may have no result, and nothing that the step gives can say so",
            found="no output and no state of floats",
        )
    files["stategate.h"] = interface(
        spec, graph_sha256, observation, initial_states=len(initial), may_fail=may_fail
    ).encode()
    files["model.c"] = model_source(
        spec, functions, weights.offsets, types, graph_sha256, may_fail=may_fail
    ).encode()
    own = Path(__file__).parent
    same = [file for file in sorted(own.iterdir()) if file.suffix in (".c", ".h", ".hpp")]
    files |= {file.name: file.read_bytes() for file in same}
    kernels, twins = _kernels(own / "stategate_kernels.h")
    files["stategate_kernels.h"] = kernels.encode()
    checks = (own / "self_test_kernels.c").read_text("utf-8")
    files["self_test_kernels.c"] = checks.replace("/* TWINS */", twins).encode()
    files[WEIGHTS] = weights.blob()
    return Source(files, tuple(sorted(inexact)))


def _kernels(header: Path) -> tuple[str, str]:
    """One header of all kernels, in place of those that it includes, and their plain loops."""
    lines, twins = [], []
    for line in header.read_text("utf-8").splitlines():
        if line.startswith('#include "kernels/'):
            text = (header.parent / line.split('"')[1]).read_text("utf-8")
            line, _, twin = text.partition("#ifdef STATEGATE_TWINS\n")
            twins.append(twin.rpartition("#endif")[0])
        lines.append(line)
    return "\n".join([*lines, ""]), "\n".join(filter(None, twins))


class _Cut:
    """Which nodes a tensor needs.

    Attributes:
        views: Nodes that show an input, a state or a constant in another way, and move nothing.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.views: set[int] = set()
        shown = {tensor.name for tensor in (*model.graph.input, *model.graph.initializer)}
        for i, node in enumerate(model.graph.node):
            if node.op_type in _VIEWS and shown.issuperset(filter(None, node.input)):
                self.views.add(i)
                shown.update(node.output)
        self._producer = {name: i for i, n in enumerate(model.graph.node) for name in n.output}
        self._constants = {tensor.name for tensor in model.graph.initializer}

    def above(self, names: Iterable[str]) -> list[int]:
        """Nodes that these tensors need, in the graph's order."""
        todo, needed = list(names), set[int]()
        while todo:
            i = self._producer.get(todo.pop())
            if i is not None and i not in needed:
                needed.add(i)
                todo += self.model.graph.node[i].input
        return sorted(needed)

    def payload_of(self, before: Sequence[int], nodes: Sequence[int]) -> list[str]:
        """Tensors that nodes read which others before them make."""
        inputs = [name for i in nodes for name in self.model.graph.node[i].input]
        own = {name for i in nodes for name in self.model.graph.node[i].output}
        return [n for n in dict.fromkeys(inputs) if n not in own and self.made_by(n, before)]

    def made_by(self, name: str, nodes: Sequence[int]) -> bool:
        """Whether one of these nodes makes a tensor."""
        return self._producer.get(name) in nodes

    def inputs_of(self, nodes: Sequence[onnx.NodeProto]) -> list[str]:
        """Tensors that nodes read and do not make, but constants."""
        inner = {name for node in nodes for name in node.output}
        names = dict.fromkeys(n for node in nodes for n in node.input if n)
        return [n for n in names if n not in inner and n not in self._constants]


class _Weights:
    """Initial states and constants of a step, in one binary."""

    def __init__(self, initial: Mapping[str, Array]) -> None:
        self.offsets: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}
        self._bytes = 0
        for name, array in initial.items():
            self.add(f"{name}{INITIAL}", array)

    def add(self, name: str, array: Array) -> None:
        """Put an array behind those before it."""
        self._arrays[name] = array
        self.offsets[name] = self._bytes
        self._bytes += -(-array.nbytes // _ALIGN) * _ALIGN

    def blob(self) -> bytes:
        """Every array, little endian, each at its offset."""
        raw = bytearray(self._bytes)
        for name, array in self._arrays.items():
            data = array.astype(array.dtype.newbyteorder("<")).tobytes()
            raw[self.offsets[name] : self.offsets[name] + len(data)] = data
        return bytes(raw)
