"""What a file computes for sequences of two lengths: which axis of which value is time.

A value's time axis is the one whose extent grows with the sequence. No rule could say that as
surely for every exporter as two runs of the file itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures
from stategate.export.frontends.untrusted import run_within_limits, unoptimised

Arrays = Mapping[str, np.ndarray]
Axes = Mapping[str, int]  # the time axis by input

# Steps of the two runs. Strides that divide 24 come out even, and no short kernel lacks frames.
SHORT, LONG = 24, 48
_LONGER = (1, 10, 100)  # times that, for kernels that are longer than such a run
# Limits of one run of a stranger's file: every value in it is kept, so a run is many times as large
# as its inputs. 48 pictures of 300 by 300 in colour are within them.
_ELEMENTS, _BYTES, _SECONDS = 1 << 24, 1 << 31, 20.0
_BATCH = re.compile(r"batch|(^|[^a-z])(b|n|bs)([^a-z]|$)")
_TIME = re.compile(r"time|seq|frame|len|step|sample|(^|[^a-z])(t|l)([^a-z]|$)")


class NotTriedError(GraphError):
    """A run of a file with a longer sequence takes more than a trial may take."""

    def __init__(self, amount: str) -> None:
        self.amount = amount
        super().__init__(
            "a longer sequence is not tried, because the file takes too much for it",
            found=amount,
            expected=f"at most {_ELEMENTS:,} numbers as inputs, {_BYTES:,} bytes and {_SECONDS:g} "
            f"seconds for {LONG} steps in one call",
            remedy="declare a smaller step with --dim or --shape, or another axis with --time-axis",
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """How a value grows with the sequence: ``rate * frames + more`` along one axis."""

    axis: int
    rate: Fraction
    more: int


class Probe:
    """Both runs of a file."""

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Mapping[str, tuple[int, ...]],
        constants: Arrays,
        axes: Axes,
    ) -> None:
        self.inputs, self.axes = dict(inputs), dict(axes)
        self.hop = next(inputs[name][axis] for name, axis in axes.items())
        self._session = unoptimised(_with_every_value(model))
        self._names = [value.name for value in self._session.get_outputs()]
        self._dtypes = {
            v.name: dtype_from_onnx(v.type.tensor_type.elem_type).name for v in model.graph.input
        }
        self._constants = constants
        self.runs = self._both()

    def _both(self) -> tuple[Arrays, Arrays]:
        problem: BaseException | None = None
        for factor in _LONGER:
            count = self._elements(LONG * factor)
            if count > _ELEMENTS:
                problem = problem or NotTriedError(f"{count:,} numbers as inputs")
                break
            try:
                return self._run(SHORT * factor), self._run(LONG * factor)
            except GraphError:
                raise
            except failures() as failure:  # ONNX Runtime raises a dozen unrelated types
                problem = problem or failure
        assert problem is not None
        raise problem

    def _extents(self, name: str, steps: int) -> list[int]:
        return [
            e * steps if self.axes.get(name) == axis else e
            for axis, e in enumerate(self.inputs[name])
        ]

    def _elements(self, steps: int) -> int:
        return sum(math.prod(self._extents(name, steps)) for name in self.inputs)

    def _run(self, steps: int) -> Arrays:
        rng = np.random.default_rng(0)
        feed = dict(self._constants)
        for name in self.inputs:
            extents = self._extents(name, steps)
            kind = np.dtype(self._dtypes[name]).kind
            numbers = rng.standard_normal(extents) if kind == "f" else np.zeros(extents)
            feed[name] = numbers.astype(self._dtypes[name])
        try:
            arrays = run_within_limits(self._session, self._names, feed, _SECONDS, _BYTES)
        except GraphError as late:
            raise NotTriedError(f"more than {_SECONDS:g} seconds") from late
        except failures() as problem:  # ONNX Runtime has no type for a lack of memory
            if re.search("bad_alloc|[Ff]ailed to allocate", str(problem)):
                raise NotTriedError(f"more than {_BYTES:,} bytes") from problem
            raise
        results = dict(zip(self._names, arrays, strict=True))
        # Sequences and optionals are no arrays; whoever takes one finds nothing here.
        return {n: a for n, a in {**feed, **results}.items() if isinstance(a, np.ndarray)}

    @property
    def frames(self) -> tuple[int, int]:
        """Frames of the time axis in both runs."""
        name, axis = next(iter(self.axes.items()))
        return self.runs[0][name].shape[axis], self.runs[1][name].shape[axis]

    def growth(self, name: str) -> Growth | None:
        """How a value grows; None where it keeps its shape."""
        if any(name not in run for run in self.runs):
            raise ValueError("gives something that is no tensor")
        short, long = (run[name].shape for run in self.runs)
        if short == long:
            return None
        growing = [i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b]
        if len(short) != len(long) or len(growing) > 1:
            raise ValueError("compares every frame with every other")
        axis = growing[0]
        frames = self.frames
        rate = Fraction(long[axis] - short[axis], frames[1] - frames[0])
        more = short[axis] - rate * frames[0]
        if more.denominator != 1 or rate <= 0:
            raise ValueError("has a length that does not follow that of the sequence")
        return Growth(axis, rate, int(more))


def _with_every_value(model: onnx.ModelProto) -> bytes:
    """The file with every result as an output, and no shape that would forbid another length."""
    work = onnx.ModelProto()
    work.CopyFrom(model)
    graph = work.graph
    open_every_axis(graph)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for name in node.output:
            if name and name not in outputs:
                graph.output.append(onnx.ValueInfoProto(name=name))
    raw: bytes = work.SerializeToString()
    return raw


def open_every_axis(graph: onnx.GraphProto) -> None:
    """Let a file take sequences of any length, whatever extents it promises."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def sequence_axes(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """What recurrent nodes and scans take frame by frame, each with its axis of frames."""
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type in ("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"):
            layout = attributes["layout"].i if "layout" in attributes else 0
            yield node.input[0], layout
        elif node.op_type == "Scan":
            count = attributes["num_scan_inputs"].i
            axes = attributes["scan_input_axes"].ints if "scan_input_axes" in attributes else ()
            for i, name in enumerate(node.input[len(node.input) - count :]):
                yield name, axes[i] if i < len(axes) else 0


def groups_of_axes(
    model: onnx.ModelProto, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, dict[str, int], int]]:
    """Axes of inputs that may be time, those that share a name together; the likeliest first.

    Returns:
        For each its name, the axis by input, and its extent in one step (1 where it is open).
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    named: dict[str, tuple[int, dict[str, int], int]] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            pinned = dims.get(dim.dim_param, 0) if dim.dim_param else 0
            if value.name in shapes and axis < len(shapes[value.name]):
                pinned = shapes[value.name][axis]
            is_open = not dim.dim_value
            label = dim.dim_param or f"axis {axis} of {value.name}"
            # Open and not pinned comes first, then what was pinned, then what the file fixes.
            order = 0 if is_open and not pinned else 1 if is_open else 2
            extent = pinned or dim.dim_value or 1
            named.setdefault(label, (order, {}, extent))[1].setdefault(value.name, axis)
    ranked = sorted(named.items(), key=lambda item: item[1][0])
    return [(label, axes, extent) for label, (_, axes, extent) in ranked]


def is_batch(label: str) -> bool:
    """Whether an axis is called like one of independent rows."""
    return bool(_BATCH.search(label.lower()))


def is_first_everywhere(model: onnx.ModelProto, label: str) -> bool:
    """Whether an axis comes first in all inputs and outputs, and is not called like time.

    Exporters number open axes (``s6``), so a batch seldom has a name that tells.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [v for v in (*model.graph.input, *model.graph.output) if v.name not in constants]
    first = {v.type.tensor_type.shape.dim[0].dim_param for v in values if _rank(v)}
    return first == {label} and all(map(_rank, values)) and not _TIME.search(label.lower())


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)
