"""A step's graph as C99: emx-onnx-cgen writes the operators, this cuts, names and embeds.

Nodes that only a guarded state needs go into functions of their own, which run when the gate is
open: a quiet step then computes no next state and writes no byte of it. The cut needs no proof of
its own, because the same nodes run on the same tensors in either case.

Weights are not printed as text but kept as one binary that the assembler includes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from stategate.contract import ObservationContract, StepSpec, sha256
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError, LowerError, SpecError
from stategate.export.c import generator
from stategate.export.c.fuse import join_loops
from stategate.export.c.interface import INITIAL, STACK_BYTES, Function, interface, model_source
from stategate.export.c.names import with_plain_names
from stategate.export.c.products import by_rows
from stategate.export.c.rewrites import with_known_operators
from stategate.export.c.scratch import off_the_stack
from stategate.export.passes.graph import CONTROL_FLOW
from stategate.export.passes.pinned import pinned

Array = NDArray[Any]

WEIGHTS = "weights.bin"
_WEIGHT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
_MOST_GATES = 63  # bits of a session's parity, but one for the states that no gate guards
_ALIGN = 64  # bytes of a cache line, and of the widest vector


def lower(
    graph: bytes,
    spec: StepSpec,
    initial: Mapping[str, Array],
    observation: ObservationContract | None = None,
) -> dict[str, bytes]:
    """The C source of a step.

    Args:
        graph: Serialised ONNX, checked.
        spec: Its signature.
        initial: Initial states that are not zero, by state name.
        observation: What the header says about inputs and outputs.

    Returns:
        Files by name: ``stategate.h``, ``session.c``, ``model.c``, one file for each part of the
        graph, and the weights.

    Raises:
        LowerError: The graph uses an operator or type that cannot be written in C, or there are
            too many gates.
    """
    try:
        model = pinned(onnx.load_model_from_string(graph), spec)
    except GraphError as problem:
        raise LowerError(f"the graph is not written as C: {problem}") from problem
    branches = sorted({node.op_type for node in model.graph.node} & CONTROL_FLOW)
    if branches:
        raise LowerError(
            "a node of the graph holds another graph, which is not written as C",
            found=", ".join(branches),
            remedy="the onnxruntime engine steps this model",
        )
    model = with_known_operators(model)
    _check_products(model)
    hard = sum(gate.kind == "hard" for gate in spec.gates)
    if hard > _MOST_GATES:
        raise LowerError(
            "too many gates for a session in C", found=hard, expected=f"at most {_MOST_GATES}"
        )
    graph_sha256 = sha256(graph)
    model = by_rows(model)
    cut = _Cut(model)
    weights = _Weights(model, initial)
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
            parts[part] = ([n for n in cut.above(rest) if n not in reads], rest)
    payload: dict[str, None] = {}  # a dict for its order: the C must not change from run to run
    for name, (nodes, _) in parts.items():
        if name != "read":
            payload |= dict.fromkeys(cut.handed_over(reads, nodes))
    files: dict[str, bytes] = {}
    functions = {}
    with generator.templates() as folder:
        for name, (nodes, names) in parts.items():
            gives = list(dict.fromkeys([*names, *payload])) if name == "read" else names
            text, functions[name] = _part(f"stategate_{name}", folder, cut, weights, nodes, gives)
            files[f"{name}.c"] = text.encode()
    types = {name: cut.type_of(name) for name in payload}
    files["stategate.h"] = interface(spec, graph_sha256, observation).encode()
    files["model.c"] = model_source(spec, functions, weights.offsets, types, graph_sha256).encode()
    own = Path(__file__).parent
    for static in ("session.c", "python.c", "stategate_math.h", "stategate_model.h"):
        files[static] = (own / static).read_bytes()
    files[WEIGHTS] = weights.blob()
    return files


def _check_products(model: onnx.ModelProto) -> None:
    """Refuse products with a constant of zeros, which compilers get wrong for NaN and infinity.

    Reordering of sums needs ``-fno-signed-zeros``, and with that gcc 12 makes ``x + d * 0`` in a
    vectorised loop into ``x``, although ``d * 0`` is NaN where ``d`` is not finite.
    """
    zeros = {
        tensor.name
        for tensor in model.graph.initializer
        if (values := numpy_helper.to_array(tensor)).dtype.kind == "f" and not values.any()
    }
    products = [n for n in model.graph.node if n.op_type == "Mul" and zeros & set(n.input)]
    if products:
        raise LowerError(
            "a product with a constant of zeros would lose NaN and infinity in C",
            found=", ".join(node.name or node.output[0] for node in products[:3]),
            remedy="leave the product out of the model; the onnxruntime engine steps it as it is",
        )


class _Cut:
    """Which nodes a tensor needs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._producer = {name: i for i, n in enumerate(model.graph.node) for name in n.output}
        graph = model.graph
        constants = [
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in graph.initializer
        ]
        values = (*constants, *graph.value_info, *graph.input, *graph.output)
        self._values = {value.name: value for value in values}

    def above(self, names: Iterable[str]) -> list[int]:
        """Nodes that these tensors need, in the graph's order."""
        todo, needed = list(names), set[int]()
        while todo:
            i = self._producer.get(todo.pop())
            if i is not None and i not in needed:
                needed.add(i)
                todo += self.model.graph.node[i].input
        return sorted(needed)

    def handed_over(self, before: Sequence[int], nodes: Sequence[int]) -> list[str]:
        """Tensors that nodes read which others before them make."""
        inputs = [name for i in nodes for name in self.model.graph.node[i].input]
        return [name for name in dict.fromkeys(inputs) if self.made_by(name, before)]

    def made_by(self, name: str, nodes: Sequence[int]) -> bool:
        """Whether one of these nodes makes a tensor."""
        return self._producer.get(name) in nodes

    def value(self, name: str) -> onnx.ValueInfoProto:
        """Type and shape of a tensor."""
        value: onnx.ValueInfoProto | None = self._values.get(name)
        if value is None:
            makers = [node for node in self.model.graph.node if name in node.output]
            by = [f", made by {node.domain or 'ai.onnx'}.{node.op_type}" for node in makers]
            raise LowerError(
                "a tensor of the graph has no known shape",
                found="".join([name, *by]),
                remedy="the onnxruntime engine steps this model",
            )
        return value

    def type_of(self, name: str) -> tuple[str, int]:
        """Dtype and number of elements of a tensor."""
        tensor = self.value(name).type.tensor_type
        try:
            dtype = dtype_from_onnx(tensor.elem_type)
        except SpecError as problem:
            raise LowerError("a tensor has a type that C lacks", found=name) from problem
        return dtype.name, int(np.prod([d.dim_value for d in tensor.shape.dim], dtype=np.int64))


class _Weights:
    """Initial states and constants of a graph, but for scalars and indices, in one binary."""

    def __init__(self, model: onnx.ModelProto, initial: Mapping[str, Array]) -> None:
        # The generator has to see by how much a picture grows.
        sizes = {name for n in model.graph.node if n.op_type == "Resize" for name in n.input[1:]}
        self._arrays = {f"{name}{INITIAL}": array for name, array in initial.items()}
        self._arrays |= {
            t.name: numpy_helper.to_array(t)
            for t in model.graph.initializer
            if t.dims and t.data_type in _WEIGHT_TYPES and t.name not in sizes
        }
        self.offsets: dict[str, int] = {}
        at = 0
        for name, array in self._arrays.items():
            self.offsets[name] = at
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        self._bytes = at

    def blob(self) -> bytes:
        """Every array, little endian, each at its offset."""
        raw = bytearray(self._bytes)
        for name, array in self._arrays.items():
            data = array.astype(array.dtype.newbyteorder("<")).tobytes()
            raw[self.offsets[name] : self.offsets[name] + len(data)] = data
        return bytes(raw)


def _part(
    name: str,
    folder: Path,
    cut: _Cut,
    weights: _Weights,
    nodes: Sequence[int],
    gives: Sequence[str],
) -> tuple[str, Function]:
    """C of some nodes as one function, and how it is called."""
    graph = cut.model.graph
    chosen = [graph.node[i] for i in nodes]
    inner = {tensor for node in chosen for tensor in node.output}
    outer = dict.fromkeys(t for node in chosen for t in node.input if t and t not in inner)
    constants = {t.name: t for t in graph.initializer}
    takes = [t for t in outer if t not in constants or t in weights.offsets]
    part = onnx.helper.make_model(
        onnx.helper.make_graph(
            chosen,
            name,
            [cut.value(t) for t in takes],
            [cut.value(t) for t in gives],
            [constants[t] for t in outer if t in constants and t not in weights.offsets],
            # The generator infers shapes by itself, but not through operators of com.microsoft.
            value_info=[
                cut.value(t)
                for node in chosen
                if node.domain == "com.microsoft"
                for t in node.output
                if t not in gives
            ],
        ),
        opset_imports=cut.model.opset_import,
        ir_version=cut.model.ir_version,
    )
    text = generator.c_of(with_plain_names(part), name, folder)
    if "malloc(" in text or "fopen(" in text:
        raise LowerError("the C of this graph would use the heap or files", found=name)
    # Parts are linked together, and number their constants alike.
    text = re.sub(r"^extern const [^;]*;\n", "", text, flags=re.M)
    text = re.sub(r"^const EMX_UNUSED", "static const EMX_UNUSED", text, flags=re.M)
    text = text.replace("#include <math.h>", '#include <math.h>\n#include "stategate_math.h"', 1)
    text = off_the_stack(join_loops(text), STACK_BYTES)
    head = re.search(rf"^void {name}\(.*\)(?= \{{)", text, flags=re.M)
    if head is None:
        raise LowerError("the code generator wrote no function of the expected name", found=name)
    return text, Function(f"{head.group()};", tuple(takes), tuple(gives))
