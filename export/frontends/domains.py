"""What a graph itself says of its inputs: which numbers an integer may be, how a float is spread.

A policy that was trained with a normaliser of observations carries their mean and deviation. Random
inputs that have both lie where the model was trained, and plain noise may lie far outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from stategate.contract import TensorSpec
from stategate.contract.dtypes import dtype_named
from stategate.export.frontends.steering import choices
from stategate.export.passes.constants import FoldConstants
from stategate.export.passes.dataflow import constant_of, extents, inferred, values_of

_SAME_ELEMENTS = frozenset(["Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"])
_NEARLY = 0.05  # a normaliser that has seen nothing is this close to leaving its input alone
_REACH = 3.0  # deviations from the mean
_WHOLE = ("int8", "uint8", "int16", "uint16")  # samples and pixels: every number is one

Array = NDArray[Any]


class Domain(NamedTuple):
    """How random numbers for an input are drawn, and in words why."""

    words: str
    numbers: range | tuple[int, ...] = ()  # one of these; or, for a float, these two:
    mean: Array | None = None
    deviation: Array | None = None

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Numbers of this shape, the steps first."""
        if self.mean is None or self.deviation is None:
            return np.array(self.numbers)[rng.integers(len(self.numbers), size=shape)]
        spread = rng.standard_normal(shape).clip(-_REACH, _REACH)
        return np.asarray(self.mean + self.deviation * spread)


def domains(model: onnx.ModelProto, inputs: Iterable[TensorSpec]) -> dict[str, Domain]:
    """The domain of each input of which the graph says something, by name."""
    inputs = list(inputs)
    by_name = dict[str, Domain]()
    for name, numbers in choices(model, inputs).items():
        few = tuple(numbers)
        is_row = isinstance(numbers, range)
        words = f"{name} below {len(few)}" if is_row else f"{name} near what it is compared with"
        by_name[name] = Domain(words, numbers if isinstance(numbers, range) else few)
    folded = inferred(model)
    FoldConstants(inf)(folded)
    graph = folded.graph
    for tensor in inputs:
        if tensor.dtype in _WHOLE and tensor.name not in by_name:
            limits = np.iinfo(tensor.dtype)
            whole = range(limits.min, limits.max + 1)
            by_name[tensor.name] = Domain(f"{tensor.name} in all of {tensor.dtype}", whole)
        elif dtype_named(tensor.dtype).numpy.kind == "f":
            spread = _spread(graph, tensor)
            if spread is not None:
                words = f"{tensor.name} from the statistics of its normaliser"
                by_name[tensor.name] = Domain(words, mean=spread[0], deviation=spread[1])
    return by_name


def _spread(graph: ir.Graph, tensor: TensorSpec) -> tuple[Array, Array] | None:
    """Mean and deviation of ``(x - mean) / deviation``, in the input's shape; None without."""
    for node in _uses(values_of(graph).get(tensor.name)):
        shape = extents(node.outputs[0]) or ()
        for mean, deviation in _statistics(node):
            try:
                both = [np.broadcast_to(a, shape).astype(float) for a in (mean, deviation)]
                mean, deviation = (array.reshape(tensor.shape) for array in both)
            except ValueError:  # more elements than the input has
                continue
            is_idle = np.abs(mean).max() < _NEARLY and np.abs(deviation - 1).max() < _NEARLY
            if np.isfinite(mean).all() and np.isfinite(deviation).all() and not is_idle:
                return mean, deviation
    return None


def _statistics(node: ir.Node) -> Iterator[tuple[Array, Array]]:
    """Mean and deviation that a node, or one behind it, takes off and divides by."""
    numbers = [constant_of(value) for value in node.inputs[1:]]
    if node.op_type == "BatchNormalization" and all(array is not None for array in numbers):
        mean, variance = (np.asarray(array) for array in numbers[2:4])
        axes = (-1, *[1] * (len(extents(node.inputs[0]) or ()) - 2))  # of each channel
        deviation = np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        yield mean.reshape(axes), deviation.reshape(axes)
    if node.op_type != "Sub" or numbers[0] is None:
        return
    for scaled in _uses(node.outputs[0]):
        divisor = constant_of(scaled.inputs[1]) if len(scaled.inputs) == 2 else None
        if divisor is not None and scaled.op_type in ("Div", "Mul"):
            with np.errstate(all="ignore"):
                yield numbers[0], np.abs(1 / divisor if scaled.op_type == "Mul" else divisor)


def _uses(value: ir.Value | None) -> list[ir.Node]:
    """Nodes that take a value, or one that has the same elements."""
    nodes = []
    for node in () if value is None else value.consumers():
        if node.op_type in _SAME_ELEMENTS and node.inputs[0] is value:
            nodes += _uses(node.outputs[0])
        else:
            nodes.append(node)
    return nodes
