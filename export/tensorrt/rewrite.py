"""One node at a time in the form that a generation of TensorRT has for it, or the reason why not.

The check before a build and the build itself call the same function, each on a model of its own, so
that neither can take what the other refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import sqrt

import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract.errors import GraphError
from stategate.export.passes.dataflow import integers_of
from stategate.export.passes.graph import Writer
from stategate.export.tensorrt.generations import RULES, Generation

# Names of tensors that the rewriting adds begin with this; a graph that has such a name is refused.
RESERVED = "stategate_"
_FLOATS = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


def read_model(model: onnx.ModelProto) -> ir.Model:
    """A model to rewrite, with the types and shapes that can be inferred."""
    # Where it contradicts itself, what it says of its tensors is all that is known.
    with suppress(onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model)
    return ir.from_proto(model)


def extents_of(value: ir.Value | None) -> tuple[int, ...]:
    """The extents of a tensor, 0 for an open one; empty where its rank is not known."""
    shape = () if value is None or value.shape is None else value.shape
    return tuple(extent if isinstance(extent, int) else 0 for extent in shape)


def writer_for(node: ir.Node) -> Writer:
    """What adds nodes for a node, under names that no other tensor has.

    They stand at the end of its graph, which is to be sorted when all are written.
    """
    assert node.graph is not None
    return Writer(node.graph, f"{RESERVED}{node.outputs[0].name}")


def replace_node(node: ir.Node, result: ir.Value) -> None:
    """Put a value into the place of the first output of a node."""
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], [], node.outputs[:1], [result]
    )


def lower_node(node: ir.Node, opset: int, generation: Generation) -> None:
    """Rewrite a node to the form that a generation takes, of the graph's opset or an older one."""
    target = min(opset, generation.opset)
    try:
        schema = onnx.defs.get_schema(node.op_type, target)
    except onnx.defs.SchemaError:
        schema = None
    decompose = _DECOMPOSE.get(node.op_type)
    if decompose is not None and any(output.name for output in node.outputs[1:]):
        raise GraphError("more outputs than the first")
    if decompose is not None and (schema is None or node.op_type in generation.lacks):
        replace_node(node, decompose(node, writer_for(node)))
        return
    if schema is None:
        raise GraphError("an operator that came later")
    if opset <= generation.opset:
        return
    if node.op_type == "Split" and target < 18:
        _split(node)
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and target < 18:
        _reduce(node)
    elif target < 19:
        node.attributes.pop("saturate", None)  # of casts to float8, which come later too
    _check_form(node, schema, target)


def _check_form(node: ir.Node, schema: onnx.defs.OpSchema, opset: int) -> None:
    """Refuse what the older operator lacks; ONNX adds features as attributes, inputs and types."""
    newer = sorted(set(node.attributes) - set(schema.attributes))
    if newer or len(node.inputs) > schema.max_input:
        raise GraphError(f"{', '.join(newer) or 'inputs'} of a later opset")
    for later in RULES.later_value:
        if later.operator == node.op_type and later.attribute in node.attributes:
            value = node.attributes.get_string(later.attribute)
            if later.opset.get(value, 0) > opset:
                raise GraphError(f"{later.attribute} {value} of a later opset")
    for number, tensor in enumerate(node.inputs):
        legal = schema.inputs[min(number, len(schema.inputs) - 1)].types
        if tensor is not None and tensor.dtype and f"tensor({_word(tensor.dtype)})" not in legal:
            raise GraphError(
                f"an input of type {_word(tensor.dtype)}, which came with a later opset"
            )


def _word(dtype: ir.DataType) -> str:
    return dtype.name.lower()


def _split(node: ir.Node) -> None:
    """Give sizes instead of a number of parts, which came with opset 18."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return
    extents, axis = extents_of(node.inputs[0]), node.attributes.get_int("axis", 0)
    if not -len(extents) <= axis < len(extents) or not extents[axis]:
        raise GraphError("parts of an extent that is not known")
    parts = len(node.outputs)
    each = -(-extents[axis] // parts)
    sizes = [each] * (parts - 1) + [extents[axis] - each * (parts - 1)]
    if sizes[-1] < 1:
        raise GraphError(f"{parts} parts of an extent of {extents[axis]}")
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, writer_for(node).constant(sizes, np.int64))


def _reduce(node: ir.Node) -> None:
    """Give axes as an attribute, which opset 18 made an input."""
    nothing = node.attributes.pop("noop_with_empty_axes", None)
    axes = integers_of(node, 1)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        raise GraphError("axes that are computed")
    if axes:
        node.attributes.add(ir.AttrInt64s("axes", axes))
    elif nothing is not None and nothing.as_int():
        raise GraphError("no axes, which reduces nothing since opset 18 and everything before")
    node.resize_inputs(1)


def _gelu(node: ir.Node, write: Writer) -> ir.Value:
    """x/2 (1 + erf(x / sqrt 2)), or its approximation by tanh; ONNX, Gelu-20."""
    x = node.inputs[0]
    kind = _float_of(x)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = write(
            "Mul", write("Pow", x, write.constant(3.0, kind)), write.constant(0.044715, kind)
        )
        slope = write.constant(sqrt(2.0 / np.pi), kind)
        inner = write("Tanh", write("Mul", write("Add", cube, x), slope))
    else:
        inner = write("Erf", write("Mul", x, write.constant(sqrt(0.5), kind)))
    share = write("Add", inner, write.constant(1.0, kind))
    return write("Mul", write("Mul", share, x), write.constant(0.5, kind))


def _layer_norm(node: ir.Node, write: Writer) -> ir.Value:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axes; LayerNormalization-17."""
    x, scale, *bias = node.inputs
    if _float_of(x) is not np.float32:
        raise GraphError("an input of float16, whose mean is taken in float32")
    rank, axis = len(extents_of(x)), node.attributes.get_int("axis", -1)
    if not -rank <= axis < rank:
        raise GraphError(f"axis {axis} of {rank} axes that are known")
    axes = list(range(axis - rank if axis >= 0 else axis, 0))
    epsilon = write.constant(node.attributes.get_float("epsilon", 1e-5), np.float32)
    centred = write("Sub", x, write("ReduceMean", x, axes=axes))
    # Two passes: the mean of squares less the square of the mean would lose digits.
    variance = write("ReduceMean", write("Mul", centred, centred), axes=axes)
    deviation = write("Sqrt", write("Add", variance, epsilon))
    result = write("Mul", write("Div", centred, deviation), scale)
    return write("Add", result, bias[0]) if bias and bias[0] is not None else result


_DECOMPOSE: dict[str, Callable[[ir.Node, Writer], ir.Value]] = {
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
}


def _float_of(value: ir.Value | None) -> type:
    dtype = None if value is None else value.dtype
    if dtype not in _FLOATS:
        raise GraphError(f"an input of type {_word(dtype) if dtype else 'that is not known'}")
    return _FLOATS[dtype]
