"""Which weights of a step a precision plan may quantise, and which of them it does.

Projections are products, convolutions and recurrent nodes with constant weights, in any
layout. Products of two activations (a memory read, an attention score) and everything elementwise
stay float32, and so do all states. Two kinds of projection stay float32 unless a plan asks
otherwise:

* ``gates``: one whose result reaches a gate without passing another projection, or reaches
  nothing but gates. A gate that is off by a rounding error writes the wrong thing for ever.
* ``recurrence``: one that reads a state without passing another projection, and from whose result
  that same state's next value is computed. Its rounding error is fed back to it.

A gate's influence through its own decision does not count as reaching.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from stategate.contract import StepSpec
from stategate.contract.errors import ExportError, SpecError
from stategate.contract.precision import GATES, RECURRENCE, PrecisionPlan
from stategate.export.passes.dataflow import values_of

# What a tensor of the file is called where the graph of a pool hands it over in another layout.
IN_FILE = " in the file"
_RECURRENT = ("LSTM", "GRU", "RNN")
_NAMED = 12  # so many weights that stay in float are named, the largest first
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_SMALL = 256  # a constant of fewer elements is no weight that anybody would look for


@dataclass(frozen=True, slots=True)
class Projection:
    """A constant weight of a node, which a plan may quantise."""

    group: str  # its name in plans: that of its weight
    node: str  # its node's name in the graph
    data: str  # the tensor that it projects; empty where that is a recurrent node's own last result
    weight: str  # the initialiser that it projects with
    role: str  # ``gates``, ``recurrence``, or empty
    elements: int  # size of its weight
    slots: tuple[int, int]  # at which of the node's inputs weight and data are
    axis: int  # axis of the weight along which its output channels lie
    # whether integers of data and weight can be multiplied, and whether weights of 4 bits can
    in_integers: bool
    in_four_bits: bool


def projections(model: onnx.ModelProto, spec: StepSpec) -> list[Projection]:
    """Every weight of a step that may be quantised, in the graph's order."""
    graph = ir.from_proto(model).graph
    values = values_of(graph)
    gates = [values[gate.name] for gate in spec.gates]
    places = {node: list(_weights_of(node)) for node in graph}
    slots = {(node, slot) for node, weights in places.items() for slot, _, _ in weights}
    for node, weights in places.items():
        # What is read elsewhere too, as a table or inside of a branch, would lie there twice.
        places[node] = [w for w in weights if _read_only_at(node.inputs[w[0]], slots)]
    nodes = {node for node, weights in places.items() if weights}

    def behind(names: Iterable[str], *, through_projections: bool) -> set[ir.Node]:
        """The nodes of projections that some values are computed from."""
        waiting = [values[name] for name in names]
        visited, projecting = set(waiting), set()
        while waiting:
            node = waiting.pop().producer()
            if node is None:
                continue
            if node in nodes:
                projecting.add(node)
                if not through_projections:
                    continue
            # A gate decides and does not feed: what it is computed from is not what it decides on.
            fresh = {v for v in node.inputs if v is not None} - visited - {*gates}
            visited |= fresh
            waiting += fresh
        return projecting

    def ahead(name: str) -> set[tuple[ir.Node, int]]:
        """The weights, by node and slot, that a value meets without passing another projection."""
        reached = {values[name]}
        met = set()
        for node in graph:  # ONNX keeps nodes in an order in which they can run
            if reached.isdisjoint(node.inputs):
                continue
            if node not in nodes:
                reached |= {*node.outputs} - {*gates}
            for slot, _, _ in places[node]:
                # Only its input meets the first weight of a recurrent node.
                meets = node.inputs[:1] if node.op_type in _RECURRENT and slot == 1 else node.inputs
                if not reached.isdisjoint(meets):
                    met.add((node, slot))
        return met

    before_gates = behind((gate.name for gate in spec.gates), through_projections=False)
    results = [t.name for t in spec.outputs] + [s.next_name for s in spec.states]
    useful = behind(results, through_projections=True)
    recurrent: set[tuple[ir.Node, int]] = set()
    for state in spec.states:
        makers = behind([state.next_name], through_projections=True)
        recurrent |= {(node, slot) for node, slot in ahead(state.name) if node in makers}
    result = []
    for node, weights in places.items():
        for slot, at, axis in weights:
            weight = node.inputs[slot]
            data = node.inputs[at] if at < len(node.inputs) else None
            assert weight is not None
            assert weight.const_value is not None
            # What was written for one branch of a file, or turned, is called as its author did.
            name = str(weight.name).split(" in branch ")[0].removesuffix("_Transposed")
            group = name.removeprefix("model.").removesuffix(".weight") or str(node.name)
            role = GATES if node in before_gates or node not in useful else ""
            role = role or (RECURRENCE if (node, slot) in recurrent else "")
            wide = weight.dtype == ir.DataType.FLOAT
            plain = node.op_type in ("MatMul", "Gemm", "Conv") and not node.domain
            right = plain and node.op_type != "Conv" and slot == 1
            result.append(
                Projection(
                    group,
                    str(node.name),
                    "" if data is None else str(data.name),
                    str(weight.name),
                    role,
                    weight.const_value.size,
                    (slot, at),
                    axis,
                    in_integers=wide and plain,
                    in_four_bits=wide and right and len(weight.const_value.shape) == 2,
                )
            )
    return result


def _read_only_at(weight: ir.Value | None, slots: set[tuple[ir.Node, int]]) -> bool:
    assert weight is not None
    return not weight.is_graph_output() and all((u.node, u.idx) in slots for u in weight.uses())


def _weights_of(node: ir.Node) -> Iterator[tuple[int, int, int]]:
    """Constant weights of a node: the slot of each, of what it projects, and its channels' axis."""
    operator = node.op_type.removeprefix("Fused")
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return
    turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    slots: tuple[tuple[int, int, int], ...] = ()
    if operator in ("MatMul", "Gemm"):
        # A row of the left factor and a column of the right one are an output.
        slots = ((1, 0, -2 if turned[1] else -1), (0, 1, -1 if turned[0] else -2))
    elif operator == "Conv":
        slots = ((1, 0, 0),)
    elif operator == "ConvTranspose":
        slots = ((1, 0, 1),)
    elif operator in _RECURRENT:
        slots = ((1, 0, 1), (2, 5, 1))
    for slot, at, axis in slots:
        weight = node.inputs[slot]
        data = node.inputs[at] if at < len(node.inputs) else None
        if weight is None or weight.const_value is None or weight.dtype is None:
            continue
        tensor = weight.const_value
        is_weight = weight.dtype.is_floating_point() and len(tensor.shape) > 1
        if is_weight and (data is None or not data.is_initializer()):
            yield slot, at, axis % len(tensor.shape)


def chosen(plan: PrecisionPlan, every: list[Projection]) -> list[Projection]:
    """The projections that a plan quantises; an error where there is none."""
    float_weights: set[str] = set()
    for name in plan.keep_float:
        matches = {p.weight for p in every if name == p.role or fnmatchcase(p.group, name)}
        if not matches and name not in (GATES, RECURRENCE):
            raise SpecError(
                "keep_float names a group that the model does not have",
                found=name,
                expected=", ".join(sorted(p.group for p in every)) or "nothing: no projections",
            )
        float_weights |= matches
    if plan.weights == "int4":
        float_weights |= {p.weight for p in every if not p.in_four_bits}
    # By weight and not by node: a weight has one form for all nodes that read it.
    narrow = [p for p in every if p.weight not in float_weights]
    if not narrow:
        raise ExportError(
            "the plan quantises nothing",
            found=f"{len(every)} projections, {len(every)} of them kept in float",
            expected="at least one product with a constant matrix in float32 on its right"
            if plan.weights == "int4"
            else "at least one product, convolution or recurrent node with constant weights",
            remedy="take names out of keep_float, or export in float32"
            + (", or in int8-weights, which take every layout" if plan.weights == "int4" else ""),
        )
    return narrow


def left_in_float(narrow: list[Projection], every: list[Projection], wide: onnx.ModelProto) -> str:
    """Weights that stay in float, the largest first, each with its reason; empty for none."""
    readers = {name: node.op_type for node in wide.graph.node for name in node.input}
    roles = {p.weight: p.role for p in every}
    smaller = {p.weight for p in narrow}
    floats = [
        (int(np.prod(t.dims)), t.name)
        for t in wide.graph.initializer
        if t.data_type in _FLOATS
        and len(t.dims) > 1
        and t.name in readers
        and t.name not in smaller
    ]
    large = sorted((size, name) for size, name in floats if size >= _SMALL)[::-1]
    named = [
        f"{name} ({size:,}, {roles.get(name) or f'of {readers[name]}'})"
        for size, name in large[:_NAMED]
    ]
    return ", ".join(named) + (f" and {len(large) - _NAMED} more" if large[_NAMED:] else "")


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants of a graph, scales among them."""
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
