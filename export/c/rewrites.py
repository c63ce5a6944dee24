"""Operators that the generator of C lacks, in terms of those that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stategate.export.passes.dataflow import extents
from stategate.export.passes.graph import after_passes


def with_known_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a step with known shapes, whose Einsum and backward Slice are written out."""
    rewritten = after_passes(model, WriteOut(), RemoveUnusedNodesPass())
    return onnx.shape_inference.infer_shapes(rewritten, strict_mode=True)


class WriteOut(ir.passes.InPlacePass):
    """Write out Einsum as products, and a Slice with a negative step as a Gather.

    Requires known shapes. What has an unusual form stays, and the generator refuses it by name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each such node; the model, and whether there was one."""
        graph, changed = model.graph, False
        for node in list(graph):
            write = _WRITERS.get(node.op_type) if not node.domain else None
            tape = ir.tape.Tape()
            result = write(node, _New(tape, node)) if write else None
            if result is None:
                continue
            for value in tape.initializers:
                graph.register_initializer(value)
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], tape.nodes, node.outputs, [result]
            )
            changed = True
        return ir.passes.PassResult(model, changed)


class _New:
    """What stands in the place of a node: other nodes, and the constants that they read."""

    def __init__(self, tape: ir.tape.Tape, node: ir.Node) -> None:
        self.op = tape.op
        self._tape, self._name = tape, str(node.outputs[0].name)

    def integers(self, values: Sequence[int]) -> ir.Value:
        name = f"{self._name} constant {len(self._tape.initializers)}"
        return self._tape.initializer(ir.tensor(np.array(values, np.int64), name=name))


def _einsum(node: ir.Node, new: _New) -> ir.Value | None:
    """Turn two operands into stacks of matrices, multiply, and turn the result back."""
    terms = _terms(node.attributes.get_string("equation", ""))
    shapes = [extents(value) for value in node.inputs]
    if terms is None or len(node.inputs) != 2 or None in shapes:
        return None
    (left, right), out = terms
    sizes: dict[str, int] = {}
    for term, shape in zip((left, right), shapes, strict=True):
        # A repeated letter is a diagonal, and an extent of 1 may stand for a larger one.
        if shape is None or len(term) != len(shape) or len(set(term)) < len(term):
            return None
        if any(sizes.setdefault(c, n) != n for c, n in zip(term, shape, strict=True)):
            return None
    if len(set(out)) < len(out) or not {*out} <= {*left, *right}:
        return None
    both = [c for c in out if c in left and c in right]
    rows = [c for c in out if c not in right]
    columns = [c for c in out if c not in left]
    summed = [c for c in left if c in right and c not in out]

    def matrices(value: ir.Value | None, term: str, first: list[str], last: list[str]) -> ir.Value:
        extra = [i for i, c in enumerate(term) if c not in {*both, *first, *last}]
        if extra:  # letters of this operand only, which the result lacks
            value = new.op("ReduceSum", [value, new.integers(extra)], {"keepdims": 0})
            term = "".join(c for i, c in enumerate(term) if i not in extra)
        order = [*both, *first, *last]
        value = new.op("Transpose", [value], {"perm": [term.index(c) for c in order]})
        groups = (both, first, last)
        return new.op("Reshape", [value, new.integers([prod(sizes[c] for c in g) for g in groups])])

    product = new.op(
        "MatMul",
        [
            matrices(node.inputs[0], left, rows, summed),
            matrices(node.inputs[1], right, summed, columns),
        ],
    )
    order = [*both, *rows, *columns]
    product = new.op("Reshape", [product, new.integers([sizes[c] for c in order])])
    return new.op("Transpose", [product], {"perm": [order.index(c) for c in out]})


def _terms(equation: str) -> tuple[list[str], str] | None:
    """Letters of each operand and of the result; None where some stand for several axes."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "." in equation:
        return None
    letters = "".join(terms)
    return terms, out if arrow else "".join(sorted(c for c in letters if letters.count(c) == 1))


def _backward_slice(node: ir.Node, new: _New) -> ir.Value | None:
    """Each axis by itself: a Gather of the places that the slice names."""
    value, *rest = node.inputs
    shape = extents(value)
    parts = [None if v is None or v.const_value is None else v.const_value.numpy() for v in rest]
    starts, ends, axes, steps = [*parts, None, None][:4]
    if shape is None or starts is None or ends is None or steps is None or min(steps) > 0:
        return None
    if axes is None:
        if len(rest) > 2 and rest[2] is not None:
            return None
        axes = np.arange(len(starts))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places = range(shape[axis])[start:end:step]  # ends beyond the axis count as in Python
        value = new.op("Gather", [value, new.integers(places)], {"axis": int(axis)})
    return value


_WRITERS: dict[str, Callable[[ir.Node, _New], ir.Value | None]] = {
    "Einsum": _einsum,
    "Slice": _backward_slice,
}
