"""Products with constant weights in the form that generated C reads from memory in one direction.

A step multiplies vectors, so a product costs what reading its weights costs. The generator's own
loops read a weight of ``MatMul`` down its columns, and widen integers into an array of floats
before they multiply. Here every weight is turned to lie row by row, and integers are multiplied
where they are widened. What the loops look like is up to the templates in ``export/c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stategate.export.passes.graph import after_passes

Arrays = dict[str, NDArray[Any]]


def by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a step with known shapes, its constant weights row by row; see `TurnWeights`."""
    return after_passes(model, TurnWeights(), RemoveUnusedNodesPass())


class TurnWeights(ir.passes.InPlacePass):
    """Turn the constant weights of products so that a row is one output.

    ``MatMul`` with a matrix of float32 becomes ``Gemm``. With one of int8 behind
    ``DequantizeLinear``, symmetric and with one scale for each column or one for all, it becomes
    ``com.microsoft``'s ``MatMulNBits`` with a whole row as its block, and with weights that have
    their sign, which our template alone takes: the same numbers, but that the scale multiplies the
    sum and not its terms.

    Requires known shapes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each such product; the model, and whether there was one."""
        graph = model.graph
        self._names = set(ir.convenience.create_value_mapping(graph))
        self._turned: dict[ir.Value, list[ir.Value]] = {}
        products = [node for node in graph if (node.domain, node.op_type) == ("", "MatMul")]
        before = {node: self._replacement(graph, node) for node in products}
        for node, replacement in before.items():
            if replacement is not None:
                ir.convenience.replace_nodes_and_values(
                    graph, node, [node], [replacement], node.outputs, replacement.outputs
                )
        model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, any(before.values()))

    def _replacement(self, graph: ir.Graph, node: ir.Node) -> ir.Node | None:
        data, weight = node.inputs
        rank = 0 if data is None or data.shape is None else len(data.shape)
        if weight is None or rank < 2:
            return None
        maker = weight.producer()
        if maker is not None and maker.op_type == "DequantizeLinear":
            arrays = _integer_rows(maker)
            if arrays is None:
                return None
            n, _, k = arrays["rows"].shape
            return ir.node(
                "MatMulNBits",
                [data, *self._constants(graph, weight, arrays)],
                {"K": k, "N": n, "bits": 8, "block_size": k},
                domain="com.microsoft",
                name=node.name,
            )
        if weight.const_value is None or not len(weight.const_value.shape) == rank == 2:
            return None
        rows = self._constants(graph, weight, {"rows": weight.const_value.numpy().T})
        return ir.node("Gemm", [data, *rows], {"transB": 1}, name=node.name)

    def _constants(self, graph: ir.Graph, weight: ir.Value, arrays: Arrays) -> list[ir.Value]:
        """What was made of a weight, once for all products that read it."""
        if weight not in self._turned:
            values = []
            for part, array in arrays.items():
                name = f"{weight.name}.{part}"
                while name in self._names:
                    name += "."
                self._names.add(name)
                tensor = ir.tensor(np.ascontiguousarray(array), name=name)
                values.append(ir.val(name, const_value=tensor))
                graph.register_initializer(values[-1])
            self._turned[weight] = values
        return self._turned[weight]


def _integer_rows(node: ir.Node) -> Arrays | None:
    """Rows ``(N, 1, K)`` int8 and scales ``(N,)`` of a weight ``(K, N)``; None if it has none."""
    constants = [
        v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None
    ]
    if len(constants) < sum(value is not None for value in node.inputs):
        return None
    values, scales, *zeros = constants
    axis = node.attributes.get_int("axis", 1)
    of_columns = scales.size == 1 or (axis in (1, -1) and scales.shape == values.shape[1:])
    symmetric = values.dtype == np.int8 and not any(zero.any() for zero in zeros)
    if values.ndim != 2 or scales.dtype != np.float32 or not (of_columns and symmetric):
        return None
    return {
        "rows": values.T[:, None],
        "scales": np.broadcast_to(scales.reshape(-1), values.shape[1:]),
    }
