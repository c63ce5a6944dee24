"""Operators that the generator of C lacks, in terms of those that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

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
    """Write out Einsum as products, a Slice with a negative step as a Gather, and old Softmax.

    Requires known shapes. Guarantees the same numbers up to the order of a sum. What has an unusual
    form stays, and the generator refuses it by name.
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


class _Operand(NamedTuple):
    """A value with a letter for each of its axes."""

    value: ir.Value | None
    term: str


def _einsum(node: ir.Node, new: _New) -> ir.Value | None:
    """Products of two operands at a time, then the axes of the result in their order."""
    shapes = [extents(value) for value in node.inputs]
    sizes_of = [shape for shape in shapes if shape is not None]
    terms = _terms(node.attributes.get_string("equation", ""), [len(shape) for shape in sizes_of])
    if terms is None or len(sizes_of) < len(shapes):
        return None
    *terms, out = terms
    pairs = [pair for t, n in zip(terms, sizes_of, strict=True) for pair in zip(t, n, strict=True)]
    sizes = dict(sorted(pairs, key=lambda pair: pair[1]))  # the largest is last and stays
    if any(n not in (1, sizes[c]) for c, n in pairs):
        return None
    operands = [
        _simple(_Operand(value, term), shape, sizes, new)
        for value, term, shape in zip(node.inputs, terms, sizes_of, strict=True)
    ]
    while len(operands) > 1:
        left, right, *others = operands
        needed = {*out}.union(*(other.term for other in others))
        operands = [_product(left, right, needed, sizes, new), *others]
    value, term = _summed(operands[0], {*out}, new)
    return new.op("Transpose", [value], {"perm": [term.index(c) for c in out]})


def _terms(equation: str, ranks: Sequence[int]) -> list[str] | None:
    """Letters of each operand and of the result, with letters for what dots stand for."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    letters = "".join(terms).replace(".", "")
    extra = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=False)]
    dots = [n if "..." in t else 0 for t, n in zip(terms, extra, strict=False)]
    if len(terms) != len(ranks) or extra != dots or min(dots, default=0) < 0:
        return None
    axes = "".join(map(chr, range(0x3B1, 0x3B1 + max(dots, default=0))))
    if not arrow:
        out = "..." * any(dots) + "".join(sorted(c for c in letters if letters.count(c) == 1))
    terms = [t.replace("...", axes[len(axes) - n :]) for t, n in zip(terms, dots, strict=True)]
    out = out.replace("...", axes)
    return [*terms, out] if len({*out}) == len(out) and {*out} <= {*"".join(terms)} else None


def _simple(
    operand: _Operand, shape: Sequence[int], sizes: Mapping[str, int], new: _New
) -> _Operand:
    """Without axes that are repeated for the other operands, and with the diagonal of two."""
    value, term = operand
    whole = [i for i, c in enumerate(term) if shape[i] == sizes[c]]
    if len(whole) < len(term):
        value = new.op("Reshape", [value, new.integers([shape[i] for i in whole])])
        term = "".join(term[i] for i in whole)
    for letter in {c for c in term if term.count(c) > 1}:
        while term.count(letter) > 1:
            first, second = [i for i, c in enumerate(term) if c == letter][:2]
            others = [i for i in range(len(term)) if i not in (first, second)]
            term, n = "".join(term[i] for i in others) + letter, sizes[letter]
            value = new.op("Transpose", [value], {"perm": [*others, first, second]})
            flat = [*(sizes[c] for c in term[:-1]), n * n]
            value = new.op("Reshape", [value, new.integers(flat)])
            places = new.integers([i * (n + 1) for i in range(n)])
            value = new.op("Gather", [value, places], {"axis": len(flat) - 1})
    return _Operand(value, term)


def _summed(operand: _Operand, needed: set[str], new: _New) -> _Operand:
    """Without the axes that nothing else has and the result lacks."""
    value, term = operand
    extra = [i for i, c in enumerate(term) if c not in needed]
    if extra:
        value = new.op("ReduceSum", [value, new.integers(extra)], {"keepdims": 0})
    return _Operand(value, "".join(c for c in term if c in needed))


def _product(
    left: _Operand, right: _Operand, needed: set[str], sizes: Mapping[str, int], new: _New
) -> _Operand:
    """One operand of two: a stack of matrix products, or of numbers where nothing is summed."""
    left = _summed(left, needed | {*right.term}, new)
    right = _summed(right, needed | {*left.term}, new)
    both = [c for c in left.term if c in right.term and c in needed]
    summed = [c for c in left.term if c in right.term and c not in needed]
    rows = [c for c in left.term if c not in right.term]
    columns = [c for c in right.term if c not in left.term]

    def stack(operand: _Operand, first: list[str], last: list[str]) -> ir.Value:
        order = [*both, *first, *last]
        perm = [operand.term.index(c) for c in order]
        value = new.op("Transpose", [operand.value], {"perm": perm})
        groups = (both, first, last)
        return new.op("Reshape", [value, new.integers([prod(sizes[c] for c in g) for g in groups])])

    if summed:
        factors = [stack(left, rows, summed), stack(right, summed, columns)]
    else:
        factors = [stack(left, rows, []), stack(right, [], columns)]
    order = [*both, *rows, *columns]
    product = new.op("MatMul" if summed else "Mul", factors)
    product = new.op("Reshape", [product, new.integers([sizes[c] for c in order])])
    return _Operand(product, "".join(order))


def _backward_slice(node: ir.Node, new: _New) -> ir.Value | None:
    """Each axis by itself: a Gather of the places that the slice names."""
    value, *rest = node.inputs
    if not rest:  # opset 9 has them as attributes, and no steps
        return None
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


def _of_last_axes(node: ir.Node, new: _New) -> ir.Value | None:
    """Before opset 13 these took all axes from theirs on as one."""
    shape, graph = extents(node.inputs[0]), node.graph
    if shape is None or graph is None or graph.opset_imports.get("", 13) >= 13:
        return None
    axis = node.attributes.get_int("axis", 1)
    axis += len(shape) if axis < 0 else 0
    rows = new.op(
        "Reshape", [node.inputs[0], new.integers([prod(shape[:axis]), prod(shape[axis:])])]
    )
    done = new.op(node.op_type, [rows], {"axis": 1})
    return new.op("Reshape", [done, new.integers(shape)])


def _without_roi(node: ir.Node, new: _New) -> ir.Value | None:
    """Opset 11 wants a roi, which is empty where nothing is cropped, and the generator does not."""
    value, *rest = node.inputs
    roi = rest[0].const_value if len(rest) > 1 and rest[0] is not None else None
    if roi is None or roi.size > 0:
        return None
    return new.op("Resize", [value, None, *rest[1:]], dict(node.attributes))


_WRITERS: dict[str, Callable[[ir.Node, _New], ir.Value | None]] = {
    "Einsum": _einsum,
    "Slice": _backward_slice,
    "Resize": _without_roi,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _of_last_axes),
}
