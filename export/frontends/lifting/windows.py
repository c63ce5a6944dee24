"""What looks at a window of frames: convolutions, pools, padding, pieces of a sequence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stategate.export.frontends.lifting.work import Course, Mixed, Work
from stategate.export.passes.dataflow import pads_of

_FOR_EVER = np.iinfo(np.int64).max


def convolve(work: Work, node: ir.Node) -> None:
    """A convolution or pool over frames reads the frames before from a state."""
    value = node.inputs[0]
    assert value is not None
    course, sample = work.courses[value], work.shape(value)
    at, spatial = course.axis - 2, len(sample) - 2
    kernel = node.attributes.get_ints("kernel_shape", None) or work.shape(node.inputs[1])[2:]
    dilations = node.attributes.get_ints("dilations", [1] * spatial)
    strides = node.attributes.get_ints("strides", [1] * spatial)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads_of(node, sample[2:], reach, strides)
    before, behind = pads[at], pads[spatial + at]
    size, stride = reach[at], strides[at]
    fill = 0.0
    if node.op_type == "MaxPool":
        if len(node.outputs) > 1:
            raise Mixed("gives places in the whole sequence")
        fill = float(np.finfo(work.runs(value)[0].dtype).min)  # smaller than anything but itself
    if (
        node.op_type == "AveragePool"
        and before
        and not node.attributes.get_int("count_include_pad", 0)
    ):
        raise Mixed("averages fewer frames at the beginning than later")
    if node.attributes.get_int("ceil_mode", 0) and stride > 1:
        raise Mixed("rounds the number of its frames up")
    lead = (course.lead + before - size) // stride + 1
    if lead < 0:
        needed = size - stride - course.lead - before
        frames = f"{needed} frame{'s' if needed > 1 else ''}"
        raise Mixed(
            f"reads {frames} of the future, because its padding is not in front alone"
            if behind or course.tail
            else f"has its first answer after {frames}, because nothing is padded in front"
        )
    everything = (course.lead + before + course.tail + behind - size) // stride + 1
    after = Course(course.axis, course.rate / stride, lead, everything - lead)
    work.frames(after)
    first = work.filled(value, course, before, fill)
    joined, _ = work.with_history(node, value, course, first)
    pads[at] = pads[spatial + at] = 0
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.replace_input_with(0, joined)
    follow(work, node, after)


def spread(work: Work, node: ir.Node) -> None:
    """A transposed convolution whose frames do not overlap gives several for each."""
    value = node.inputs[0]
    assert value is not None
    course, at = work.courses[value], work.courses[value].axis - 2
    spatial = len(work.shape(value)) - 2
    kernel = work.shape(node.inputs[1])[2:][at]
    stride = node.attributes.get_ints("strides", [1] * spatial)[at]
    pads = node.attributes.get_ints("pads", [0] * 2 * spatial)
    extra = node.attributes.get_ints("output_padding", [0] * spatial)[at]
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if kernel != stride or pads[at] or pads[at + spatial] or extra or automatic:
        raise Mixed("adds up frames that overlap")
    follow(work, node, _times(course, stride))


def pad(work: Work, node: ir.Node) -> None:
    """Padding in front of the first frame is what a history begins with."""
    value = node.inputs[0]
    assert value is not None
    course, rank = work.courses[value], len(work.shape(value))
    pads = work.same(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None:
        pads = np.array(node.attributes.get_ints("pads", []))
    if not pads.size:
        raise Mixed("pads by a number that is not constant")
    axes = range(rank)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        listed = work.same(node.inputs[3])
        axes = [int(i) % rank for i in listed] if listed is not None else []  # type: ignore[assignment]
    if course.axis not in axes:
        follow(work, node, course)
        return
    at = list(axes).index(course.axis)
    front, behind = int(pads[at]), int(pads[len(pads) // 2 + at])
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant" and (front or behind):
        raise Mixed(f"pads with frames of the sequence itself (mode {mode})")
    if front < 0:
        raise Mixed(f"leaves out the first {-front} frames: its answers come from the future")
    fill = work.same(node.inputs[2]) if len(node.inputs) > 2 else None
    number = (
        float(fill.reshape(-1)[0]) if fill is not None else node.attributes.get_float("value", 0.0)
    )
    joined, longer = work.with_history(
        node, value, course, work.filled(value, course, front, number)
    )
    if behind < 0:
        lead, tail = _shortened(longer, -behind)
        joined, behind = work.cut(joined, longer, 0, lead), 0
        longer = Course(course.axis, course.rate, lead, tail)
    rest = np.array(pads, np.int64)
    rest[[at, len(pads) // 2 + at]] = 0
    after = Course(course.axis, course.rate, longer.lead, longer.tail + behind)
    if not rest.any():
        work.become(node, joined, checked(work, node.outputs[0], after))
        return
    node.replace_input_with(0, joined)
    if "pads" in node.attributes:
        node.attributes["pads"] = ir.AttrInt64s("pads", rest.tolist())
    else:
        node.replace_input_with(1, work.write.constant(rest, np.int64))
    follow(work, node, after)


def join(work: Work, node: ir.Node) -> None:
    """What is put in front of the first frame is what a history begins with."""
    running = [i for i, v in enumerate(node.inputs) if v in work.courses]
    if len(running) > 1:
        raise Mixed("joins two sequences, one behind the other")
    at = running[0]
    value = node.inputs[at]
    assert value is not None
    course = work.courses[value]
    tail = course.tail
    for other in node.inputs[at + 1 :]:
        if other in work.ends:
            raise Mixed("puts the end of the sequence behind it")
        tail += work.shape(other)[course.axis]
    for other in reversed(node.inputs[:at]):
        assert other is not None
        array = work.same(other)
        if array is not None:
            value, course = work.with_history(node, value, course, array)
        elif other in work.starts:
            # A history that is a state of the file already.
            value = work.write("Concat", other, value, axis=course.axis)
            extent = work.shape(other)[course.axis]
            course = Course(course.axis, course.rate, course.lead + extent, course.tail)
        else:
            raise Mixed("puts something in front of the sequence that is computed from it")
    after = Course(course.axis, course.rate, course.lead, tail)
    work.become(node, value, checked(work, node.outputs[0], after))


def piece(work: Work, node: ir.Node) -> None:
    """A slice over frames: without the first, without the last, or the last alone."""
    value = node.inputs[0]
    assert value is not None
    course, rank = work.courses[value], len(work.shape(value))
    bounds = [_numbers(work, node, at, name) for at, name in ((1, "starts"), (2, "ends"))]
    axes = _numbers(work, node, 3, "axes") or [list(range(len(bounds[0][0])))] * 2
    steps = _numbers(work, node, 4, "steps") or [[1] * len(axes[0])] * 2
    where = [axis % rank for axis in axes[0]]
    if course.axis not in where:
        follow(work, node, course)
        return
    at = where.index(course.axis)
    if steps[0][at] != 1:
        raise Mixed("takes frames in steps, or backwards")
    total = [run.shape[course.axis] for run in work.runs(value)]
    picked = [range(n)[slice(bounds[0][i][at], bounds[1][i][at])] for i, n in enumerate(total)]
    if not picked[0] or not picked[1]:
        raise Mixed("takes no frame")
    from_front = [frames.start for frames in picked]
    from_behind = [n - frames.stop for n, frames in zip(total, picked, strict=True)]
    if len(picked[0]) == len(picked[1]):
        _newest(work, node, course, len(picked[0]), from_behind, where, at)
        return
    if from_front[0] != from_front[1] or from_behind[0] != from_behind[1]:
        raise Mixed("takes a part of the sequence that depends on its length")
    skipped = from_front[0]
    if skipped > course.lead:
        raise Mixed(f"leaves out the first {skipped} frames: its answers come from the future")
    lead, tail = _shortened(
        Course(course.axis, course.rate, course.lead - skipped, course.tail), from_behind[0]
    )
    shorter = work.cut(value, course, skipped, lead)
    after = Course(course.axis, course.rate, lead, tail)
    if len(where) == 1:
        work.become(node, shorter, checked(work, node.outputs[0], after))
        return
    node.replace_input_with(0, shorter)
    _set_bounds(work, node, at, 0, _FOR_EVER)
    follow(work, node, after)


def pick(work: Work, node: ir.Node) -> None:
    """One frame: the last is that of the newest step."""
    value = node.inputs[0]
    assert value is not None
    course = work.courses[value]
    index = node.inputs[1]
    if index is None or not (index in work.free or index in work.lengths):
        raise Mixed("picks frames by a number that is computed from the data")
    total = [run.shape[course.axis] for run in work.runs(value)]
    places = [array % n for array, n in zip(work.runs(index), total, strict=True)]
    if places[0].size != 1 or any(
        int(p.reshape(-1)[0]) != n - 1 for p, n in zip(places, total, strict=True)
    ):
        raise Mixed("picks other frames than the last")
    if course.tail:
        raise Mixed("picks a frame of the padding behind the end")
    node.replace_input_with(1, work.write.constant(np.full(places[0].shape, -1), np.int64))
    work.ends.update(node.outputs)


def follow(work: Work, node: ir.Node, course: Course) -> None:
    """Note the time axis of every result of a node."""
    for value in node.outputs:
        if value.name:
            work.courses[value] = checked(work, value, course)


def checked(work: Work, value: ir.Value, course: Course) -> Course:
    """A course on the axis where the run has it."""
    growth = work.growth(value)
    if growth is None or (growth.rate, growth.more) != (course.rate, course.lead + course.tail):
        raise Mixed("gives another number of frames than it should")
    return Course(growth.axis, course.rate, course.lead, course.tail)


def _newest(
    work: Work,
    node: ir.Node,
    course: Course,
    count: int,
    from_behind: list[int],
    where: list[int],
    at: int,
) -> None:
    if from_behind != [course.tail] * 2:
        raise Mixed("takes the same few frames of every sequence, and not the last")
    if count > course.lead + work.frames(course):
        raise Mixed(f"takes the last {count} frames, and a step has fewer")
    _set_bounds(work, node, at, -count, _FOR_EVER)
    work.ends.update(node.outputs)


def _set_bounds(work: Work, node: ir.Node, at: int, start: int, end: int) -> None:
    """Other bounds of a slice along one of its axes."""
    for place, name, bound in ((1, "starts", start), (2, "ends", end)):
        numbers = _numbers(work, node, place, name)[0]
        numbers = [*numbers[:at], bound, *numbers[at + 1 :]]
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, numbers)
        else:
            node.replace_input_with(place, work.write.constant(numbers, np.int64))


def _shortened(course: Course, count: int) -> tuple[int, int]:
    """Lead and tail without the last ``count`` frames."""
    tail = max(0, course.tail - count)
    lead = course.lead - (count - (course.tail - tail))
    if lead < 0:
        raise Mixed(f"gives no answer for the last {-lead} frames")
    return lead, tail


def _numbers(work: Work, node: ir.Node, at: int, name: str) -> list[list[int]]:
    """Integers of an input, or of the attribute that it was once, in both runs."""
    if name in node.attributes:
        return [list(node.attributes[name].as_ints())] * 2
    value = node.inputs[at] if len(node.inputs) > at else None
    if value is None:
        return []
    if value.const_value is not None:
        return [[int(i) for i in value.const_value.numpy().reshape(-1)]] * 2
    if not (value in work.free or value in work.lengths):
        raise Mixed("takes frames by a number that is computed from the data")
    return [[int(i) for i in run.reshape(-1)] for run in work.runs(value)]


def _times(course: Course, factor: int) -> Course:
    return Course(course.axis, course.rate * factor, course.lead * factor, course.tail * factor)
