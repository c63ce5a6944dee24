"""The graph that TensorRT gets: made from the bundle's own, for one generation of releases.

The bundle's ONNX file stays what it is; this form of it exists only beside a plan. It is of the
generation's opset, has what its parser lacks written in simpler operators, and one output more: for
each float state the sum of the magnitudes of its next value. States stay on the GPU, and that sum
is finite only where every element is (an addition hands NaN and infinity on, which a maximum does
not), so the guard against NaN needs a few bytes of each step and no copy of the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stategate.contract import StepSpec
from stategate.contract.engine_plan import GUARD
from stategate.contract.errors import GraphError
from stategate.export.graph import opset_of, without_traces_of_the_build
from stategate.export.tensorrt_rules import Generation, check_legal

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Variant:
    """A step for one generation of TensorRT.

    Attributes:
        graph: Serialised ONNX.
        guarded: States whose next values the guard output sums, in its order.
    """

    graph: bytes
    guarded: tuple[str, ...]


def variant(raw: bytes, spec: StepSpec, generation: Generation) -> Variant:
    """The form of a step that a generation of TensorRT takes.

    Args:
        raw: The bundle's step graph.
        spec: Its signature.
        generation: Which releases it is for.

    Raises:
        GraphError: That generation would not take it.
    """
    model = onnx.load_model_from_string(raw)
    check_legal(model, spec, generation)
    work = without_traces_of_the_build(model)
    if not generation.strongly_typed:
        _widen_stored_weights(work)
    _rewrite(work, generation)
    guarded = _guard(work, spec)
    try:
        onnx.checker.check_model(work)
    except onnx.checker.ValidationError as problem:
        raise GraphError(
            f"the graph has no valid form for TensorRT {generation.name}", found=str(problem)
        ) from problem
    return Variant(work.SerializeToString(deterministic=True), guarded)


class _Names:
    """Fresh names, and constants by value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._count = 0

    def fresh(self) -> str:
        self._count += 1
        return f"stategate_{self._count}"

    def constant(self, value: object, dtype: type) -> str:
        name = self.fresh()
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def _rewrite(work: onnx.ModelProto, generation: Generation) -> None:
    """Every node in the form of the generation's opset."""
    target = min(opset_of(work), generation.opset)
    names = _Names(work)
    constants = {t.name: numpy_helper.to_array(t) for t in work.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in work.graph.node:
        old = not _knows(node.op_type, target) or node.op_type in generation.lacks
        if old and node.op_type in _DECOMPOSE:
            nodes += _DECOMPOSE[node.op_type](node, names)
        elif node.op_type == "Split" and target < 18:
            nodes.append(_split(node, work, names))
        elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and target < 18:
            nodes.append(_reduce(node, constants))
        else:
            nodes.append(_without(node, {"saturate"} if target < 19 else set()))
    kept = onnx.GraphProto(node=nodes).node
    work.graph.ClearField("node")
    work.graph.node.extend(kept)
    for entry in work.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    if target < 19:  # the form of file that the parsers of that time read
        work.ir_version = min(work.ir_version, 8)


def _knows(operator: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    return True


def _without(node: onnx.NodeProto, attributes: set[str]) -> onnx.NodeProto:
    kept = [a for a in node.attribute if a.name not in attributes]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("attribute")
    copy.attribute.extend(kept)
    return copy


def _split(node: onnx.NodeProto, work: onnx.ModelProto, names: _Names) -> onnx.NodeProto:
    """With sizes instead of a number of parts, which came with opset 18."""
    if len(node.input) > 1:
        return node
    axis = _value(node, "axis", 0)
    parts = len(node.output)
    inferred = onnx.shape_inference.infer_shapes(work)
    values = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.input)}
    extents = [d.dim_value for d in values[node.input[0]].type.tensor_type.shape.dim]
    each = -(-extents[axis] // parts)
    sizes = [each] * (parts - 1) + [extents[axis] - each * (parts - 1)]
    changed = _without(node, {"num_outputs"})
    changed.input.append(names.constant(sizes, np.int64))
    return changed


def _reduce(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> onnx.NodeProto:
    """With axes as an attribute, which opset 18 made an input."""
    changed = _without(node, {"noop_with_empty_axes"})
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            raise GraphError(f"the axes of node {node.name} are computed", expected="constants")
        axes = [int(axis) for axis in constants[node.input[1]].reshape(-1)]
        changed.attribute.append(helper.make_attribute("axes", axes))
    del changed.input[1:]
    return changed


def _gelu(node: onnx.NodeProto, names: _Names) -> list[onnx.NodeProto]:
    """x/2 (1 + erf(x / sqrt 2)), or its approximation by tanh; ONNX, Gelu-20."""
    x = node.input[0]
    half, one = names.constant(0.5, np.float32), names.constant(1.0, np.float32)
    if _value(node, "approximate", b"none") == b"tanh":
        cube = names.constant(3.0, np.float32)
        inner = [
            ("Pow", [x, cube]),
            ("Mul", ["", names.constant(0.044715, np.float32)]),
            ("Add", ["", x]),
            ("Mul", ["", names.constant(sqrt(2.0 / np.pi), np.float32)]),
            ("Tanh", [""]),
        ]
    else:
        inner = [("Mul", [x, names.constant(sqrt(0.5), np.float32)]), ("Erf", [""])]
    return _chain(
        [*inner, ("Add", ["", one]), ("Mul", ["", x]), ("Mul", ["", half])], node.output[0], names
    )


def _layer_norm(node: onnx.NodeProto, names: _Names) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axes; LayerNormalization-17."""
    axis = _value(node, "axis", -1)
    if axis != -1:
        raise GraphError(
            f"node {node.name} normalises more than the last axis", found=f"axis {axis}"
        )
    x, mean, centred, variance = node.input[0], names.fresh(), names.fresh(), names.fresh()
    square, deviation = names.fresh(), names.fresh()
    epsilon = names.constant(_value(node, "epsilon", 1e-5), np.float32)
    shifted = names.fresh()
    nodes = [
        helper.make_node("ReduceMean", [x], [mean], axes=[-1]),
        helper.make_node("Sub", [x, mean], [centred]),
        helper.make_node("Mul", [centred, centred], [square]),
        helper.make_node("ReduceMean", [square], [variance], axes=[-1]),
        helper.make_node("Add", [variance, epsilon], [shifted]),
        helper.make_node("Sqrt", [shifted], [deviation]),
    ]
    last = [("Div", [centred, deviation]), ("Mul", ["", node.input[1]])]
    if len(node.input) > 2 and node.input[2]:
        last.append(("Add", ["", node.input[2]]))
    return nodes + _chain(last, node.output[0], names)


_DECOMPOSE: dict[str, Callable[[onnx.NodeProto, _Names], list[onnx.NodeProto]]] = {
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
}


def _chain(
    steps: Iterable[tuple[str, list[str]]], output: str, names: _Names
) -> list[onnx.NodeProto]:
    """Nodes one after another; an empty input is the output of the one before."""
    nodes: list[onnx.NodeProto] = []
    before = ""
    for operator, inputs in steps:
        result = names.fresh()
        nodes.append(helper.make_node(operator, [i or before for i in inputs], [result]))
        before = result
    nodes[-1].output[0] = output
    return nodes


def _widen_stored_weights(work: onnx.ModelProto) -> None:
    """Weights that are only stored in fewer bits become float32: the same numbers.

    Releases that choose types themselves would take a float16 or int8 constant as leave to compute
    in it. A weight whose partner is quantised too stays, because that product is meant in int8.
    """
    constants = {t.name: t for t in work.graph.initializer}
    makers = {name: node for node in work.graph.node for name in node.output}
    users = [(name, node) for node in work.graph.node for name in node.input]
    wide: dict[str, np.ndarray] = {}
    for node in work.graph.node:
        if not node.input or any(name and name not in constants for name in node.input):
            continue
        values = [numpy_helper.to_array(constants[n]) for n in node.input if n]
        if node.op_type == "Cast" and _value(node, "to", 0) == _FLOAT:
            wide[node.output[0]] = values[0].astype(np.float32)
        elif node.op_type == "DequantizeLinear":
            partners = [
                makers[other].op_type
                for name, user in users
                if name == node.output[0]
                for other in user.input
                if other != name and other in makers
            ]
            if "DequantizeLinear" not in partners:
                scale = values[1]
                if scale.ndim:
                    extents = [1] * values[0].ndim
                    extents[_value(node, "axis", 1)] = -1
                    scale = scale.reshape(extents)
                wide[node.output[0]] = values[0].astype(np.float32) * scale
    kept = onnx.GraphProto(node=[n for n in work.graph.node if n.output[0] not in wide]).node
    work.graph.ClearField("node")
    work.graph.node.extend(kept)
    work.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in wide.items())
    used = {name for node in work.graph.node for name in node.input}
    left = onnx.GraphProto(initializer=[t for t in work.graph.initializer if t.name in used])
    work.graph.ClearField("initializer")
    work.graph.initializer.extend(left.initializer)


def _guard(work: onnx.ModelProto, spec: StepSpec) -> tuple[str, ...]:
    """Add the guard output; the states that it sums."""
    guarded = [state for state in spec.states if state.dtype == "float32"]
    if not guarded:
        return ()
    one = f"{GUARD}_shape"
    work.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
    sums = []
    for state in guarded:
        magnitude, total, flat = (f"{GUARD}_{part}_{state.name}" for part in ("abs", "sum", "one"))
        sums.append(flat)
        work.graph.node.extend(
            [
                helper.make_node("Abs", [state.next_name], [magnitude]),
                helper.make_node("ReduceSum", [magnitude], [total], keepdims=0),
                helper.make_node("Reshape", [total, one], [flat]),
            ]
        )
    work.graph.node.append(helper.make_node("Concat", sums, [GUARD], axis=0))
    work.graph.output.append(helper.make_tensor_value_info(GUARD, _FLOAT, [len(guarded)]))
    return tuple(state.name for state in guarded)


def _value(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
