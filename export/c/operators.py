"""Each operator of ONNX in terms of views, loops, sums and products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stategate.export.c.contraction import contracted, einsum
from stategate.export.c.convolution import convolution
from stategate.export.c.loops import REDUCTIONS
from stategate.export.c.norms import layer_normalization, softmax
from stategate.export.c.program import Program
from stategate.export.c.recurrent import recurrent
from stategate.export.c.scalar import literal
from stategate.export.c.view import View

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Rule = Callable[[Program, onnx.NodeProto, Attributes], bool]


def written(program: Program, node: onnx.NodeProto) -> bool:
    """Add a node to a program; False where it is not written here."""
    attributes = {a.name: _in_text(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return False
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(program, node, attributes)
    if len(node.output) != 1:
        return False
    return program.compute(node.op_type, node.input, node.output[0], attributes)


def _in_text(value: Any) -> Any:
    """An attribute with text in place of its bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return [_in_text(each) for each in value] if isinstance(value, list) else value


def _integers(program: Program, name: str) -> list[int] | None:
    array = program.constant(name)
    return None if array is None else [int(v) for v in array.reshape(-1)]


# Operators that only move.


def _reshape(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    source, output = node.input[0], node.output[0]
    view = program.moved(source)
    shape = program.shape(output)
    moved = view.reshaped(shape)
    if moved is None:
        moved = program.contiguous(source).reshaped(shape)
        assert moved is not None
    program.alias({output: moved})
    return True


def _transpose(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    view = program.moved(node.input[0])
    axes = attributes.get("perm") or range(len(view.shape))[::-1]
    program.alias({node.output[0]: view.transposed(list(axes))})
    return True


def _slice(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    if len(node.input) < 3:  # opset 9 has them as attributes
        return False
    starts, ends, *more = [_integers(program, name) if name else None for name in node.input[1:]]
    if starts is None or ends is None:
        return False
    axes = (more[0] if more and more[0] is not None else None) or range(len(starts))
    steps = (more[1] if len(more) > 1 and more[1] is not None else None) or [1] * len(starts)
    if any(name and program.constant(name) is None for name in node.input[1:]):
        return False
    view = program.moved(node.input[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, step = slice(start, end, step).indices(view.shape[axis])
        view = view.sliced(axis, first, len(range(first, last, step)), step)
    program.alias({node.output[0]: view})
    return True


def _split(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    view = program.moved(node.input[0])
    axis = int(attributes.get("axis", 0)) % len(view.shape)
    start, views = 0, {}
    for output in node.output:
        count = program.shape(output)[axis]
        views[output] = view.sliced(axis, start, count)
        start += count
    program.alias(views)
    return True


def _gather(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    indices = program.constant(node.input[1])
    if indices is None or indices.ndim > 1 or indices.size == 0:
        return False
    if program.constant(node.input[0]) is not None:
        return False
    view = program.moved(node.input[0])
    axis = int(attributes.get("axis", 0)) % len(view.shape)
    count = view.shape[axis]
    if indices.min() < -count or indices.max() >= count:
        return False
    at = [int(i) % count for i in indices.reshape(-1)]
    steps = set(np.diff(at).tolist())
    if len(steps) > 1 or 0 in steps:
        return False
    view = view.sliced(axis, at[0], len(at), steps.pop() if steps else 1)
    program.alias({node.output[0]: view.without(axis) if indices.ndim == 0 else view})
    return True


def _expand(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    view = program.moved(node.input[0])
    program.alias({node.output[0]: view.broadcast(program.shape(node.output[0]))})
    return True


def _concat(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    output = node.output[0]
    dtype, shape = program.tensors[output]
    axis = int(attributes["axis"]) % len(shape)
    target = program.buffer(output, dtype, shape)
    start = 0
    for name in node.input:
        count = program.shape(name)[axis]
        program.copy_into(program.view(name), target.sliced(axis, start, count))
        start += count
    program.alias({output: target})
    return True


def _pad(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    """Runs of places that an axis shows again, or numbers of their own, one axis after the other.

    Reflections that reach further than the axis are left to the generator.
    """
    source, pads_name, value_name, axes_name = [*node.input, "", "", ""][:4]
    mode = attributes.get("mode", "constant")
    shape, dtype = program.shape(source), program.dtype(source)
    pads, axes = _integers(program, pads_name), _integers(program, axes_name)
    if pads is None or (axes_name and axes is None):
        return False
    places = [a % len(shape) for a in axes] if axes is not None else list(range(len(shape)))
    ends = {a: pads[i :: len(places)] for i, a in enumerate(places)}
    if mode not in ("constant", "edge", "reflect", "wrap"):
        return False
    rest = {a: shape[a] + sum(min(n, 0) for n in both) for a, both in ends.items()}
    if mode == "reflect" and any(max(ends[a]) >= rest[a] for a in ends):
        return False
    if len(ends) < len(places) or min((*rest.values(), *shape)) < 1 or dtype == "float16":
        return False
    number = program.constant(value_name) if value_name else np.zeros(1)
    value = program.view(value_name) if number is None else literal(number.reshape(-1)[0], dtype)
    view = program.view(source)
    for axis in ends:  # what negative pads take away is gone before anything is shown again
        view = view.sliced(axis, max(0, -ends[axis][0]), rest[axis])
    output = node.output[0]
    padded = [a for a in ends if max(ends[a]) > 0]
    for axis in padded:
        before, after = (max(0, n) for n in ends[axis])
        count = view.shape[axis] + before + after
        shape = (*view.shape[:axis], count, *view.shape[axis + 1 :])
        name = output if axis == padded[-1] else program.fresh(f"{output}.pad", dtype, shape).buffer
        target = program.buffer(name, dtype, shape)
        for start, length, first, step in _runs(view.shape[axis], before, after, mode):
            part = target.sliced(axis, start, length)
            fill = value if first < 0 else view.sliced(axis, first, length, step)
            program.copy_into(fill, part)
        program.alias({name: target})
        view = target
    if not padded:
        program.alias({output: view})
    return True


def _runs(extent: int, before: int, after: int, mode: Any) -> Iterator[tuple[int, int, int, int]]:
    """Start and length of each run of a padded axis, its first place, and the step to the next.

    A first place of -1 is a number of its own.
    """
    if mode == "constant":
        parts = ((0, before, -1, 0), (before, extent, 0, 1), (before + extent, after, -1, 0))
        yield from (part for part in parts if part[1])
        return
    places = np.pad(np.arange(extent), (before, after), mode).tolist()
    start = 0
    while start < len(places):
        end = start + 1
        step = places[end] - places[start] if end < len(places) else 0
        while end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        yield start, end - start, places[start], step
        start = end


# Sums along axes.


def _reduce(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    name = node.input[0]
    axes = attributes.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = _integers(program, node.input[1])
        if axes is None:
            return False
    rank = len(program.shape(name))
    if not axes:
        if attributes.get("noop_with_empty_axes"):
            return False
        axes = range(rank)
    kind = program.dtype(name)
    if kind not in ("float32", "float64", "int32", "int64"):
        return False
    if kind != "float32" and node.op_type not in ("ReduceSum", "ReduceMax", "ReduceMin"):
        return False
    program.reduce(node.op_type, name, node.output[0], list(axes))
    return True


# Products.


def _rows(program: Program, name: str, rows: int) -> View:
    """A tensor as ``(m, rows)``, copied where it is not so."""
    view = program.contiguous(name)
    moved = view.reshaped((view.size // rows, rows))
    assert moved is not None
    return moved


def _matrix(program: Program, name: str) -> tuple[Array, Array | None] | None:
    """A constant matrix, and the scale of each column where it is of int8."""
    array = program.constant(name)
    if array is not None:
        return (array, None) if array.ndim == 2 and array.dtype == np.float32 else None
    return program.integers.get(name)


def _matmul(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    a, b = node.input
    output = node.output[0]
    if program.dtype(output) != "float32":
        return False
    matrix = _matrix(program, b)
    if matrix is not None:
        program.product(_rows(program, a, matrix[0].shape[0]), matrix[0], output, scales=matrix[1])
        return True
    first = _matrix(program, a)
    if first is not None and first[1] is None and len(program.shape(b)) == 2:
        # A B = (B' A')': rows of B' are columns of B.
        turned = program.copied(program.view(b).transposed([1, 0]))
        n, k = turned.shape
        under = program.fresh(f"{output}.turned", "float32", (n, first[0].shape[0])).buffer
        program.product(replace(turned, shape=(n, k)), first[0].T, under)
        program.alias({output: program.view(under).transposed([1, 0])})
        return True
    return contracted(program, program.view(a), program.view(b), output)


def _gemm(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    a, b, *rest = node.input
    output = node.output[0]
    if program.dtype(output) != "float32":
        return False
    alpha, beta = float(attributes.get("alpha", 1)), float(attributes.get("beta", 1))
    matrix = program.constant(b)
    bias_name = rest[0] if rest and rest[0] else ""
    bias = program.constant(bias_name)
    n = program.shape(output)[1]
    m = program.shape(output)[0]
    is_turned = bool(attributes.get("transA"))
    if is_turned and m > 1:
        return False
    if matrix is None:
        if alpha != 1 or beta != 1:
            return False
        turned = [1, 0] if attributes.get("transB") else [0, 1]
        target = output
        if bias_name:
            target = program.fresh(f"{output}.product", "float32", program.shape(output)).buffer
        x = program.view(a).transposed([1, 0]) if is_turned else program.view(a)
        contracted(program, x, program.view(b).transposed(turned), target)
        return not bias_name or program.compute("Add", [target, bias_name], output)
    if matrix.dtype != np.float32:
        return False
    matrix = matrix.T if attributes.get("transB") else matrix
    if alpha != 1:
        matrix = matrix * np.float32(alpha)
    row = None
    if bias is not None and (bias.ndim < 2 or bias.shape[0] == 1):
        row = np.broadcast_to(bias.reshape(-1), (n,)) * np.float32(beta)
    elif bias_name and beta != 1:
        return False
    x = _rows(program, a, matrix.shape[0])  # one row, where it is turned
    if bias_name and row is None:
        under = program.fresh(f"{output}.product", "float32", program.shape(output)).buffer
        program.product(x, matrix, under)
        return program.compute("Add", [under, bias_name], output)
    program.product(x, matrix, output, row)
    return True


def _add(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    for name, other in (node.input, node.input[::-1]):
        bias = program.constant(other)
        if bias is not None and program.add_bias(name, bias, node.output[0]):
            return True
    return program.compute("Add", node.input, node.output[0])


# Integers with a scale.


def _dequantize(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    values, scales, *zeros = node.input
    zero = zeros[0] if zeros else ""
    x, s = program.constant(values), program.constant(scales)
    if attributes.get("block_size") or s is None or s.dtype != np.float32:
        return False
    centres = program.constant(zero)
    if zero and centres is None:
        return False
    axis = int(attributes.get("axis", 1))
    shape = program.shape(values)
    if s.size > 1 and s.shape != (shape[axis % len(shape)],):
        return False
    output = node.output[0]
    of_columns = x is not None and x.ndim == 2 and (s.size == 1 or axis % 2 == 1)
    symmetric = centres is None or not centres.any()
    if x is not None and of_columns and symmetric and x.dtype == np.int8:
        program.integers[output] = (x, np.broadcast_to(s.reshape(-1), (x.shape[1],)))
    return program.scaled(values, s, centres, axis, output)


def _quantize(program: Program, node: onnx.NodeProto, attributes: Attributes) -> bool:
    values, scales, *zeros = node.input
    s = program.constant(scales)
    centre = program.constant(zeros[0]) if zeros and zeros[0] else np.array(0, np.uint8)
    if s is None or s.size != 1 or centre is None or attributes.get("block_size"):
        return False
    if centre.dtype not in (np.int8, np.uint8) or program.dtype(values) != "float32":
        return False
    return program.rounded(values, float(s.reshape(-1)[0]), centre, node.output[0])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"), _reshape),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Concat": _concat,
    "Pad": _pad,
    **dict.fromkeys(REDUCTIONS, _reduce),
    "Softmax": softmax,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "Conv": convolution,
    "Einsum": einsum,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _add,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
}
