"""Forms of operators in those that the C is written of."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from stategate.export.passes.dataflow import extents
from stategate.export.passes.graph import Writer, after_passes

_ALL_LAST_AXES = ("Softmax", "LogSoftmax", "Hardmax")  # before opset 13


def with_known_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a step with known shapes, in forms that the C is written of."""
    return onnx.shape_inference.infer_shapes(after_passes(model, Renew()), strict_mode=True)


class Renew(ir.passes.InPlacePass):
    """Let a Softmax take its last axes as one, a Resize no empty roi, and an Einsum no half floats.

    Requires known shapes. Guarantees the same numbers. What has an unusual form stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each such node; the model, and whether there was one."""
        graph, changed = model.graph, False
        is_old = graph.opset_imports.get("", 13) < 13
        for node in [node for node in graph if not node.domain]:
            shape = extents(node.inputs[0]) if node.inputs else None
            if node.op_type in _ALL_LAST_AXES and is_old and shape is not None:
                changed |= _take_last_axes_as_one(node, shape)
            elif node.op_type == "Resize" and len(node.inputs) > 2:
                roi = None if node.inputs[1] is None else node.inputs[1].const_value
                if roi is not None and roi.size == 0:
                    node.replace_input_with(1, None)
                    changed = True
            elif node.op_type == "Einsum" and node.outputs[0].dtype == ir.DataType.FLOAT16:
                _compute_in_float32(node)
                changed = True
        graph.sort()
        return ir.passes.PassResult(model, changed)


def _take_last_axes_as_one(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Before opset 13 these took all axes from theirs on as one."""
    axis, graph = node.attributes.get_int("axis", 1), node.graph
    assert graph is not None
    axis += len(shape) if axis < 0 else 0
    write = Writer(graph, f"{node.outputs[0].name}/rows")
    rows = write.constant([prod(shape[:axis]), prod(shape[axis:])], np.int64)
    done = write(node.op_type, write("Reshape", node.inputs[0], rows), axis=1)
    back = write("Reshape", done, write.constant(shape, np.int64))
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, [back])
    return True


def _compute_in_float32(node: ir.Node) -> None:
    """Loops of our own know no half floats, and ONNX Runtime widens them too."""
    graph = node.graph
    assert graph is not None
    write = Writer(graph, f"{node.outputs[0].name}/wide")
    wide = [write("Cast", value, to=ir.DataType.FLOAT) for value in node.inputs]
    result = write(node.op_type, *wide, equation=node.attributes["equation"].as_string())
    back = write("Cast", result, to=ir.DataType.FLOAT16)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, [back])
