"""One node at a time in the form that a generation of TensorRT has for it, or the reason why not.

The check before a build and the build itself ask the same function, so that neither can take what
the other refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from stategate.contract.errors import GraphError
from stategate.export.passes.graph import opset_of

_HALF_OR_FLOAT: dict[int, type] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
}
# Values of attributes that came with a later opset, which no schema tells.
_LATER_VALUES = {
    ("Pad", "mode"): {b"wrap": 19},
    ("Resize", "coordinate_transformation_mode"): {b"half_pixel_symmetric": 19},
    ("GridSample", "mode"): {b"linear": 20, b"cubic": 20},
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a graph before it runs.

    Attributes:
        opset: Of the default domain.
        constants: Initializers and what Constant nodes give.
        types: ONNX's number of each tensor's type, where it can be inferred.
        shapes: Extents of each tensor, where they can be; 0 for an open one.
    """

    opset: int
    constants: dict[str, NDArray[Any]]
    types: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


@dataclass(slots=True)
class Names:
    """Fresh names, and constants by value.

    Attributes:
        made: The constants.
    """

    made: list[onnx.TensorProto] = field(default_factory=list)
    _count: int = 0

    def fresh(self) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"stategate_{self._count}"

    def constant(self, value: object, dtype: type) -> str:
        """Name of a new constant."""
        name = self.fresh()
        self.made.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def facts_of(model: onnx.ModelProto) -> Facts:
    """What is known of a model's tensors; of one that contradicts itself, only what it tells."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, onnx.TensorProto):
                constants[node.output[0]] = numpy_helper.to_array(value)
            elif node.attribute[0].name.startswith(("value_int", "value_float")):
                kind = np.int64 if "int" in node.attribute[0].name else np.float32
                constants[node.output[0]] = np.array(value, kind)
    types = {t.name: int(t.data_type) for t in graph.initializer}
    shapes = {name: array.shape for name, array in constants.items()}
    for tensor in (*graph.input, *graph.value_info, *graph.output):
        told = tensor.type.tensor_type
        if told.elem_type:
            types[tensor.name] = told.elem_type
        if told.HasField("shape"):
            shapes[tensor.name] = tuple(d.dim_value for d in told.shape.dim)
    return Facts(opset_of(model), constants, types, shapes)


def rewritten(
    node: onnx.NodeProto, facts: Facts, opset: int, lacks: frozenset[str], names: Names
) -> list[onnx.NodeProto]:
    """A node in the form that it has in an opset.

    Args:
        node: One of the default domain.
        facts: Of its graph.
        opset: Newest that is allowed; an older graph keeps its own.
        lacks: Operators of that opset that are written in simpler ones.
        names: For what is added.

    Raises:
        GraphError: It has none; the message is the reason.
    """
    lowered = facts.opset > opset
    target = min(facts.opset, opset)
    known = _schema(node, target)
    simpler = _DECOMPOSE.get(node.op_type)
    if simpler is not None and len([name for name in node.output if name]) > 1:
        raise GraphError("more outputs than the first")
    if simpler is not None and (known is None or node.op_type in lacks):
        return simpler(node, facts, names)
    if known is None:
        raise GraphError("an operator that came later")
    if not lowered:
        return [node]
    if node.op_type == "Split" and target < 18:
        node = _split(node, facts, names)
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and target < 18:
        node = _reduce(node, facts)
    elif target < 19:
        node = _without(node, {"saturate"})
    _check_form(node, facts, known, target)
    return [node]


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _check_form(node: onnx.NodeProto, facts: Facts, schema: onnx.defs.OpSchema, opset: int) -> None:
    """Refuse what the older operator lacks; ONNX adds features as attributes, inputs and types."""
    newer = sorted({a.name for a in node.attribute} - set(schema.attributes))
    if newer or len(node.input) > schema.max_input:
        raise GraphError(f"{', '.join(newer) or 'inputs'} of a later opset")
    for (operator, name), values in _LATER_VALUES.items():
        value = attribute_of(node, name, b"") if node.op_type == operator else b""
        if values.get(value, 0) > opset:
            raise GraphError(f"{name} {value.decode()} of a later opset")
    for number, name in enumerate(node.input):
        taken = schema.inputs[min(number, len(schema.inputs) - 1)].types
        kind = facts.types.get(name)
        if kind and f"tensor({_word(kind)})" not in taken:
            raise GraphError(f"an input of type {_word(kind)}, which came with a later opset")


def _word(kind: int) -> str:
    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def _without(node: onnx.NodeProto, attributes: set[str]) -> onnx.NodeProto:
    kept = [a for a in node.attribute if a.name not in attributes]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("attribute")
    copy.attribute.extend(kept)
    return copy


def _split(node: onnx.NodeProto, facts: Facts, names: Names) -> onnx.NodeProto:
    """With sizes instead of a number of parts, which came with opset 18."""
    if len(node.input) > 1 and node.input[1]:
        return node
    shape, axis = facts.shapes.get(node.input[0], ()), attribute_of(node, "axis", 0)
    if not -len(shape) <= axis < len(shape) or not shape[axis]:
        raise GraphError("parts of an extent that is not known")
    parts = len(node.output)
    each = -(-shape[axis] // parts)
    sizes = [each] * (parts - 1) + [shape[axis] - each * (parts - 1)]
    if sizes[-1] < 1:
        raise GraphError(f"{parts} parts of an extent of {shape[axis]}")
    changed = _without(node, {"num_outputs"})
    del changed.input[1:]
    changed.input.append(names.constant(sizes, np.int64))
    return changed


def _reduce(node: onnx.NodeProto, facts: Facts) -> onnx.NodeProto:
    """With axes as an attribute, which opset 18 made an input."""
    changed = _without(node, {"noop_with_empty_axes"})
    axes: list[int] = []
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in facts.constants:
            raise GraphError("axes that are computed")
        axes = [int(axis) for axis in facts.constants[node.input[1]].reshape(-1)]
    if axes:
        changed.attribute.append(helper.make_attribute("axes", axes))
    elif attribute_of(node, "noop_with_empty_axes", 0):
        raise GraphError("no axes, which reduces nothing since opset 18 and everything before")
    del changed.input[1:]
    return changed


def _gelu(node: onnx.NodeProto, facts: Facts, names: Names) -> list[onnx.NodeProto]:
    """x/2 (1 + erf(x / sqrt 2)), or its approximation by tanh; ONNX, Gelu-20."""
    x = node.input[0]
    kind = _float_of(x, facts)
    half, one = names.constant(0.5, kind), names.constant(1.0, kind)
    if attribute_of(node, "approximate", b"none") == b"tanh":
        cube = names.constant(3.0, kind)
        inner = [
            ("Pow", [x, cube]),
            ("Mul", ["", names.constant(0.044715, kind)]),
            ("Add", ["", x]),
            ("Mul", ["", names.constant(sqrt(2.0 / np.pi), kind)]),
            ("Tanh", [""]),
        ]
    else:
        inner = [("Mul", [x, names.constant(sqrt(0.5), kind)]), ("Erf", [""])]
    return _chain(
        [*inner, ("Add", ["", one]), ("Mul", ["", x]), ("Mul", ["", half])], node.output[0], names
    )


def _layer_norm(node: onnx.NodeProto, facts: Facts, names: Names) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axes; LayerNormalization-17."""
    x, mean, centred, variance = node.input[0], names.fresh(), names.fresh(), names.fresh()
    if _float_of(x, facts) is not np.float32:
        raise GraphError("an input of float16, whose mean is taken in float32")
    rank, axis = len(facts.shapes.get(x, ())), attribute_of(node, "axis", -1)
    if not -rank <= axis < rank:
        raise GraphError(f"axis {axis} of {rank} axes that are known")
    axes = list(range(axis - rank if axis >= 0 else axis, 0))
    square, deviation = names.fresh(), names.fresh()
    epsilon = names.constant(attribute_of(node, "epsilon", 1e-5), np.float32)
    shifted = names.fresh()
    nodes = [
        helper.make_node("ReduceMean", [x], [mean], axes=axes),
        helper.make_node("Sub", [x, mean], [centred]),
        helper.make_node("Mul", [centred, centred], [square]),
        helper.make_node("ReduceMean", [square], [variance], axes=axes),
        helper.make_node("Add", [variance, epsilon], [shifted]),
        helper.make_node("Sqrt", [shifted], [deviation]),
    ]
    last = [("Div", [centred, deviation]), ("Mul", ["", node.input[1]])]
    if len(node.input) > 2 and node.input[2]:
        last.append(("Add", ["", node.input[2]]))
    return nodes + _chain(last, node.output[0], names)


_DECOMPOSE: dict[str, Callable[[onnx.NodeProto, Facts, Names], list[onnx.NodeProto]]] = {
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
}


def _float_of(name: str, facts: Facts) -> type:
    kind = facts.types.get(name, 0)
    if kind not in _HALF_OR_FLOAT:
        raise GraphError(f"an input of type {_word(kind) if kind else 'that is not known'}")
    return _HALF_OR_FLOAT[kind]


def _chain(
    steps: Iterable[tuple[str, list[str]]], output: str, names: Names
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


def attribute_of(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, or what it is where it is left out."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
