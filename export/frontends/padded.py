"""Convolutions and pools over time that read padding where frames of earlier steps should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

import onnx
import onnx_ir as ir

from stategate.contract import StepSpec
from stategate.contract.errors import UndeclaredStateError
from stategate.export.passes.dataflow import (
    constant_values,
    extents,
    inferred,
    integers_of,
    needed_for,
    pads_of,
)

_WINDOWED = {"Conv", "AveragePool", "MaxPool", "LpPool"}
_KEEPS_NUMBERS = {"Cast", "Identity", "Squeeze", "Transpose", "Unsqueeze"}


class Padded(NamedTuple):
    """A node whose window along one axis begins in padding."""

    name: str  # of the part in the model, else of the node
    kind: str  # of its operator
    shape: tuple[int, ...]  # of what it reads, without the padding
    axis: int
    reach: int  # frames from the first to the last of its window
    forgets: bool  # it is handed one frame of a step, so that nothing else is ever in the window

    @property
    def finding(self) -> str:
        """What is wrong with it."""
        return (
            f"{self.name} ({self.kind}) reads {self.reach} frames along axis {self.axis}: "
            "one of this step, and padding in place of the steps before"
        )

    @property
    def note(self) -> str:
        """What holds of a window that is handed over whole."""
        return (
            f"{self.name} reads a window of {self.shape[self.axis]} frames: what lies before the "
            "window is padding in every step; hand over the whole window in every step"
        )


def check_padding(model: onnx.ModelProto, spec: StepSpec) -> None:
    """Refuse a traced step in which a convolution or a pool over time sees only one frame."""
    for node in padded(inferred(model).graph, spec):
        if not node.forgets:
            continue
        past = [*node.shape]
        past[node.axis] = node.reach - 1
        colons = ":, " * node.axis
        several = (
            '; each such part has a buffer of its own, and one of an inner module is "inner.past"'
            if "." in node.name
            else ""
        )
        raise UndeclaredStateError(
            f"a window over time forgets everything after each step: {node.name}",
            found=node.finding,
            expected="the frames of the steps before",
            remedy=f'keep them: self.register_buffer("past", torch.zeros({past})) in __init__; in '
            f"forward, where x is what it reads, x = torch.cat((self.past, x), {node.axis}) and "
            f"self.past = x[{colons}1:] before it, without padding, and without cutting off its "
            f'end; then lift(..., states=["past"]){several}. Or hand over '
            f"{node.reach} frames in each step",
        )


def window_notes(model: onnx.ModelProto, spec: StepSpec) -> tuple[str, ...]:
    """One sentence for each convolution that runs over a window of time, padded in front."""
    graph = inferred(model).graph
    return tuple(node.note for node in padded(graph, spec) if not node.forgets)


def padded(graph: ir.Graph, spec: StepSpec) -> list[Padded]:
    """Convolutions and pools over time that begin in padding, in graph order.

    One axis of a picture may be one row high, and padding around it is no time: with two axes or
    more, only padding in front alone counts. A longer axis is time where all that the window may
    lack is padded in front, and nothing, or as much to be cut off again, behind. Of nodes whose
    shapes are not known nothing is said.
    """
    constant = constant_values(graph, (c.name for c in spec.constants))
    frames = {value for value in graph.inputs if value.name in {t.name for t in spec.inputs}}
    needed, nodes = needed_for(graph.outputs), list[Padded]()
    for node in graph:
        if node in needed and node.op_type in {*_WINDOWED, "Gather"} and extents(node.inputs[0]):
            nodes += _padded_axes(node, constant, frames)
    return nodes


def _padded_axes(node: ir.Node, constant: set[ir.Value], frames: set[ir.Value]) -> Iterator[Padded]:
    value, shape = node.inputs[0], extents(node.inputs[0])
    assert value is not None and shape is not None  # `padded` looked
    for axis, reach, own_front, own_back, is_one_axis in _windows(node, shape):
        source, place, front, back = _without_padding(value, axis, constant)
        front, back = front + own_front, back + own_back
        bare = extents(source)
        if bare is None or reach == 1 or not front:
            continue
        count, name = bare[place], _name(node)
        read = (*shape[:axis], count, *shape[axis + 1 :])
        if count == 1:
            if (is_one_axis or not back) and _is_one_frame(source, place, constant, frames):
                yield Padded(name, node.op_type, read, axis, reach, forgets=True)
        elif is_one_axis and front >= reach - 1 and back in (0, reach - 1):
            yield Padded(name, node.op_type, read, axis, reach, forgets=False)


def _windows(node: ir.Node, shape: tuple[int, ...]) -> Iterator[tuple[int, int, int, int, bool]]:
    """Axis, reach, padding in front and behind, and whether it is the only axis with a window."""
    if node.op_type == "Gather":  # as torch's unfold is written: a row of places for each window
        index = extents(node.inputs[1])
        if index and len(index) == 2 and (places := integers_of(node, 1)):
            axis = node.attributes.get_int("axis", 0) % len(shape)
            yield axis, max(places) - min(places) + 1, 0, 0, len(shape) == 3
        return
    weight = extents(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = node.attributes.get_ints("kernel_shape", None) or (weight or ())[2:]
    rank = len(kernel)
    dilations = node.attributes.get_ints("dilations", None) or [1] * rank
    # torch pools one axis as two, of which the other is one number wide.
    wide = [i for i in range(rank) if shape[2 + i] > 1 or kernel[i] > 1]
    strides = node.attributes.get_ints("strides", None) or [1] * rank
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads_of(node, shape[2:], reach, strides)
    for i in range(rank):
        yield 2 + i, reach[i], pads[i], pads[rank + i], wide == [i]


def _without_padding(
    value: ir.Value, axis: int, constant: set[ir.Value]
) -> tuple[ir.Value, int, int, int]:
    """What a value is without constants around it along an axis, that axis, and their extents."""
    front = back = 0
    while (node := value.producer()) is not None:
        source, place = node.inputs[0], axis
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            pads, axes = integers_of(node, 1), integers_of(node, 3)
            shape = extents(source)
            if pads is None or shape is None:
                break
            axes = [a % len(shape) for a in axes] if axes else [*range(len(shape))]
            if axis in axes:
                front += pads[axes.index(axis)]
                back += pads[len(axes) + axes.index(axis)]
        elif node.op_type == "Concat":
            rank = len(extents(value) or ())
            moving = [v for v in node.inputs if v not in constant]
            if len(moving) != 1 or not rank or node.attributes.get_int("axis", 0) % rank != axis:
                break
            source = moving[0]
            k = node.inputs.index(source)
            sizes = [(extents(v) or (0,) * rank)[axis] for v in node.inputs]
            front, back = front + sum(sizes[:k]), back + sum(sizes[k + 1 :])
        elif node.op_type in _KEEPS_NUMBERS:
            before = _axis_before(value, 0, axis)
            if before is None:
                break
            place = before
        else:
            break
        if source is None or extents(source) is None:
            break
        value, axis = source, place
    return value, axis, front, back


def _is_one_frame(
    value: ir.Value, axis: int, constant: set[ir.Value], frames: set[ir.Value]
) -> bool:
    """Whether an axis is one long since an input is one step, and not since something reduced it.

    The inner levels of a U-Net are one frame long too, and have seen all the others.
    """
    waiting, looked, comes_from_input = [(value, axis)], set[tuple[ir.Value, int]](), False
    while waiting:
        value, axis = place = waiting.pop()
        if place in looked or value in constant:
            continue
        looked.add(place)
        shape = extents(value)
        if shape is None or shape[axis] != 1:
            return False
        node = value.producer()
        if node is None:
            comes_from_input |= value in frames
            continue
        for i, source in enumerate(node.inputs):
            if source is None or source in constant or not _carries(node, i, axis - len(shape)):
                continue
            if extents(source) is None:
                return False
            before = _axis_before(value, i, axis)
            if before is None:  # the axis begins here, as one step of whatever is read
                comes_from_input |= any(
                    v in frames for n in needed_for([source]) for v in n.inputs
                ) or (source in frames)
            else:
                waiting.append((source, before))
    return comes_from_input


def _carries(node: ir.Node, i: int, from_right: int) -> bool:
    """Whether an axis, counted from the right, can come from this input of a node."""
    if node.op_type == "MatMul" and from_right >= -2:
        return i == (0 if from_right == -2 else 1)
    return i == 0 or node.op_type not in {*_WINDOWED, "Reshape"}


def _axis_before(value: ir.Value, i: int, axis: int) -> int | None:
    """Where an axis of a value lies in one input of its node; None where it is new."""
    node = value.producer()
    before, after = extents(node.inputs[i]) if node else None, extents(value)
    if node is None or before is None or after is None:
        return None
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", None)
        return order[axis] if order else len(after) - 1 - axis
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        # Numbers stay in order: an axis is the same if as many numbers lie before and behind it.
        same = [
            j
            for j, extent in enumerate(before)
            if extent == after[axis] and prod(before[:j]) == prod(after[:axis])
        ]
        if node.op_type in ("Squeeze", "Unsqueeze") and (axes := _axes(node)) is not None:
            longer = len(before) if node.op_type == "Squeeze" else len(after)
            rest = [j for j in range(longer) if j not in {a % longer for a in axes}]
            if node.op_type == "Squeeze":
                return rest[axis]
            return rest.index(axis) if axis in rest else None
        return same[0] if same else None
    if node.op_type == "Gather" and i == 0:
        at = node.attributes.get_int("axis", 0) % len(before)
        index_rank = len(after) - len(before) + 1
        if axis >= at:
            return None if axis < at + index_rank else axis - index_rank + 1
        return axis
    from_left = axis - len(after) + len(before)
    return from_left if from_left >= 0 else None


def _axes(node: ir.Node) -> Iterable[int] | None:
    return node.attributes.get_ints("axes", None) or integers_of(node, 1)


def _name(node: ir.Node) -> str:
    """The part of the model that holds the weights, else the node."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    part, _, last = str(weight.name if weight is not None else "").rpartition(".")
    name = part.removeprefix("model.").removeprefix("lifted.")
    return name if name and last == "weight" else str(node.name or node.outputs[0].name)
