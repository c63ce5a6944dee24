"""A copy of a graph that becomes a step: what is known of its values, and the states it gets.

A whole sequence has T frames, a step has ``hop`` of them. A value that runs along time has
``rate * T + lead + tail`` frames in the whole sequence. Before step ``t`` come ``rate * hop * t``
of them; the step computes the next ``lead + rate * hop``. The ``lead`` is what later windows read
again, such as the padding in front. The ``tail`` belongs to padding behind the end, and no step
ever computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract import StateSpec
from stategate.export.frontends.lifting.probe import Growth, Probe
from stategate.export.passes.dataflow import reads
from stategate.export.passes.graph import Writer, opset_of

Array = np.ndarray
_OF_SHAPE = frozenset({"Shape", "Size"})


@dataclass(frozen=True, slots=True)
class Course:
    """How a value runs along time; see the words of this module."""

    axis: int
    rate: Fraction = Fraction(1)
    lead: int = 0
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Lift:
    """A memory of the graph that becomes a state."""

    node: str
    what: str  # it remembers
    state: StateSpec
    initial: Array

    def __str__(self) -> str:
        size = f"{self.state.dtype} {list(self.state.shape)}, {self.state.bytes:,} bytes"
        return f"{self.node}: state {self.state.name} keeps {self.what} ({size})"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A node that makes a stream differ from a whole sequence, and cannot be lifted."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node} {self.why}"


class Mixed(Exception):
    """A node does not go frame by frame; says why."""


class UnevenHop(Exception):
    """A step of this many frames is no whole number of frames of some value."""

    def __init__(self, factor: int) -> None:
        super().__init__(f"{factor} times the frames are needed")
        self.factor = factor


class Work:
    """A graph on its way to a step."""

    def __init__(self, model: onnx.ModelProto, probe: Probe, constants: Sequence[str]) -> None:
        self.model = ir.from_proto(model)
        self.graph, self.probe, self.hop = self.model.graph, probe, probe.hop
        self.opset = opset_of(model)
        names = [*self.graph.initializers, *(str(n.name) for n in self.graph)]
        prefix = "lifted"
        while any(name.startswith(f"{prefix}/") for name in names):  # a file that was lifted before
            prefix += "_"
        self.write = Writer(self.graph, prefix)
        self.courses: dict[ir.Value, Course] = {}
        self.starts: set[ir.Value] = set()  # known before the sequence begins, such as a state
        self.ends: set[ir.Value] = set()  # known when it has ended, such as a last state
        self.lengths: set[ir.Value] = set()  # depend on the length of the sequence, not on data
        self.free: set[ir.Value] = set(self.graph.initializers.values())  # the same in every run
        self.lifts: list[Lift] = []
        self._names = {str(v.name) for v in (*self.graph.inputs, *self.graph.outputs)}
        for value in self.graph.inputs:
            if value.name in constants:
                self.free.add(value)
            elif value.name in probe.axes:
                self.courses[value] = Course(probe.axes[value.name])
            elif not value.is_initializer():
                self.starts.add(value)

    def runs(self, value: ir.Value) -> tuple[Array, Array]:
        """A value in both runs."""
        if value.const_value is not None:
            constant = value.const_value.numpy()
            return constant, constant
        short, long = self.probe.runs
        return short[str(value.name)], long[str(value.name)]

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Extents of a value in the short run; none where there is no value."""
        return () if value is None else self.runs(value)[0].shape

    def growth(self, value: ir.Value) -> Growth | None:
        """How a value grows with the sequence."""
        try:
            return self.probe.growth(str(value.name))
        except ValueError as problem:
            raise Mixed(str(problem)) from problem

    def frames(self, course: Course) -> int:
        """New frames that a value has in each step."""
        count = course.rate * self.hop
        if count.denominator != 1:
            raise UnevenHop(count.denominator)
        return int(count)

    def same(self, value: ir.Value | None) -> Array | None:
        """The array of what no input changes, and no length; None of everything else."""
        if value is None or not (value in self.free or value in self.lengths):
            return None
        short, long = self.runs(value)
        equal = short.shape == long.shape and np.array_equal(short, long, equal_nan=True)
        return short if equal else None

    def settle(self, node: ir.Node, at: int, frames: int) -> None:
        """Put a constant in the place of an operand that was computed from the length."""
        value = node.inputs[at]
        if value is None or value not in self.lengths:
            return
        array, growth = self.same(value), self.growth(value)
        if array is None and growth is not None:
            short, long = self.runs(value)
            first = np.take(short, [0], growth.axis)
            if not all(
                np.array_equal(run, np.broadcast_to(first, run.shape)) for run in (short, long)
            ):
                raise Mixed("depends on the position in the sequence")
            array = np.repeat(first, frames, growth.axis)
        if array is None:
            raise Mixed("depends on the length of the sequence")
        node.replace_input_with(at, self.write.constant(array, array.dtype.type))

    def become(self, node: ir.Node, value: ir.Value, course: Course | None = None) -> ir.Value:
        """Put a value in the place of the first result of a node, which goes."""
        old = node.outputs[0]
        name = str(old.name)
        old.name = f"{name} before"
        copy = self.write("Identity", value, output=name)
        copy.type = old.type
        old.replace_all_uses_with(copy, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        if course is not None:
            self.courses[copy] = course
        return copy

    def slice(self, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
        """Some frames of a value."""
        bounds = [self.write.constant([number], np.int64) for number in (start, end, axis)]
        return self.write("Slice", value, *bounds)

    def carried(self, node: ir.Node, label: str, what: str, initial: Array) -> ir.Value:
        """A new state; `give_next` says what feeds it."""
        stem = name = f"{node.name or result_of(node)}.{label}"
        number = 1
        while name in self._names or f"{name}_next" in self._names:
            number += 1
            name = f"{stem}{number}"
        self._names |= {name, f"{name}_next"}
        spec = StateSpec(name, initial.shape, str(initial.dtype))
        self.lifts.append(Lift(title(node), what, spec, initial))
        kind = ir.TensorType(ir.DataType.from_numpy(initial.dtype))
        value = ir.val(name, type=kind, shape=ir.Shape(initial.shape))
        self.graph.inputs.append(value)
        self.starts.add(value)
        return value

    def give_next(self, state: ir.Value, value: ir.Value) -> None:
        """Let a value be what a state is after the step."""
        # A copy: what is an output already must not be taken away from the caller.
        copy = self.write("Identity", value, output=f"{state.name}_next")
        copy.type, copy.shape = state.type, state.shape
        self.graph.outputs.append(copy)

    def with_history(
        self, node: ir.Node, value: ir.Value, course: Course, first: Array
    ) -> tuple[ir.Value, Course]:
        """Put the frames before in front of a value."""
        count, new = first.shape[course.axis], self.frames(course)
        longer = Course(course.axis, course.rate, course.lead + count, course.tail)
        if not count:
            return value, longer
        plural = "s" if count > 1 else ""
        state = self.carried(node, "history", f"the {count} frame{plural} before", first)
        joined = self.write("Concat", state, value, axis=course.axis)
        # The window moves on by the new frames; what lies before it then is kept.
        self.give_next(state, self.slice(joined, new, new + count, course.axis))
        return joined, longer

    def cut(self, value: ir.Value, course: Course, start: int, lead: int) -> ir.Value:
        """The part of a window that begins at ``start`` and has ``lead`` frames less the new."""
        end = start + lead + self.frames(course)
        if start == 0 and lead == course.lead:
            return value
        return self.slice(value, start, end, course.axis)

    def filled(self, value: ir.Value, course: Course, count: int, fill: float) -> Array:
        """``count`` equal frames of the shape and dtype of a value."""
        sample = self.runs(value)[0]
        shape = [count if i == course.axis else e for i, e in enumerate(sample.shape)]
        return np.full(shape, fill, sample.dtype)

    def note_lengths(self, node: ir.Node) -> bool:
        """Note results that no data change, the shape of data among them; whether these are."""
        sources = reads(node)
        of_shape = node.op_type in _OF_SHAPE and not node.domain
        if not of_shape and not all(v in self.free or v in self.lengths for v in sources):
            return False
        long = of_shape or any(v in self.lengths for v in sources)
        (self.lengths if long else self.free).update(node.outputs)
        return True

    def taint(self, node: ir.Node) -> None:
        """Note whether results without a time axis are known at the start or at the end."""
        sources = reads(node)
        if any(v in self.ends or v in self.courses for v in sources):
            self.ends.update(node.outputs)
        else:
            self.starts.update(node.outputs)


def title(node: ir.Node) -> str:
    """A node in words: its operator, and its name or what it gives."""
    return f"{node.op_type} {node.name or f'that gives {result_of(node)}'}"


def result_of(node: ir.Node) -> str:
    """The name of the first result that a node has."""
    return next((str(value.name) for value in node.outputs if value.name), "nothing")
