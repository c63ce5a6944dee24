"""Products with constant weights in the form that generated C reads from memory in one direction.

A step multiplies vectors, so a product costs what reading its weights costs. The generator's own
loops read a weight of ``MatMul`` down its columns, and widen integers into an array of floats
before they multiply. Here every weight is turned to lie row by row, and integers are multiplied
where they are widened. What the loops look like is up to the templates in ``export/c``.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same step with its constant weights row by row.

    ``MatMul`` with a matrix of float32 becomes ``Gemm``. With one of int8 behind
    ``DequantizeLinear``, symmetric and with one scale for each column or one for all, it becomes
    ``com.microsoft``'s ``MatMulNBits`` with a whole row as its block, and with weights that have
    their sign, which our template alone takes: the same numbers, but that the scale multiplies the
    sum and not its terms.

    Args:
        model: A step with known shapes; left as it is.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    graph = work.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    widened = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    rank = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info)
    }
    taken = {*weights, *rank, *(name for node in graph.node for name in node.output)}
    dots = "."  # in no name, so that no tensor has one of ours
    while any(dots in name for name in taken):
        dots += "."
    for node in graph.node:
        if node.op_type != "MatMul" or node.domain or rank.get(node.input[0], 0) < 2:
            continue
        data, weight = node.input
        if weight in widened:
            turned = _of_integers(widened[weight], weights)
            if turned is None:
                continue
            values, scales = turned
            n, _, k = values.shape
            names = _kept(weights, f"{weight}{dots}", {"rows": values, "scales": scales})
            sizes = {"K": k, "N": n, "bits": 8, "block_size": k}
            form = helper.make_node(
                "MatMulNBits", [data, *names], node.output, domain="com.microsoft", **sizes
            )
        elif weight in weights and len(weights[weight].dims) == rank[data] == 2:
            rows = numpy_helper.to_array(weights[weight]).T
            names = _kept(weights, f"{weight}{dots}", {"rows": rows})
            form = helper.make_node("Gemm", [data, *names], node.output, transB=1)
        else:
            continue
        form.name = node.name
        node.CopyFrom(form)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    left = [n for n in graph.node if n.output[0] not in widened or n.output[0] in used]
    used = {name for node in left for name in node.input}
    rest = onnx.GraphProto(node=left, initializer=[t for t in weights.values() if t.name in used])
    for field in ("node", "initializer"):
        graph.ClearField(field)
        getattr(graph, field).extend(getattr(rest, field))
    if all(opset.domain != "com.microsoft" for opset in work.opset_import):
        work.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return work


def _kept(
    weights: dict[str, onnx.TensorProto], of: str, arrays: dict[str, NDArray[np.generic]]
) -> list[str]:
    """Names of what was made of a weight, which is kept once for all who read it."""
    names = [f"{of}{kind}" for kind in arrays]
    for name, array in zip(names, arrays.values(), strict=True):
        weights.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
    return names


def _of_integers(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]
) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Values ``(N, 1, K)`` and scales ``(N,)`` of a matrix ``(K, N)``; None if it has none."""
    if not all(name in weights for name in node.input):
        return None
    values, scales, *zeros = (numpy_helper.to_array(weights[name]) for name in node.input)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    of_columns = scales.size == 1 or (axis in (1, -1) and scales.shape == values.shape[1:])
    symmetric = values.dtype == np.int8 and not any(zero.any() for zero in zeros)
    if values.ndim != 2 or scales.dtype != np.float32 or not (of_columns and symmetric):
        return None
    return values.T[:, None], np.broadcast_to(scales.reshape(-1), values.shape[1:])
