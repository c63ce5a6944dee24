"""From a file that takes a whole sequence to one that takes a step, with its memory as states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stategate.contract import TensorSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.export.frontends.lifting.carried import (
    RECALLING,
    RECURRENT,
    add_up,
    loop,
    recall,
    recur,
    scan,
)
from stategate.export.frontends.lifting.mixing import (
    ELEMENTWISE,
    RESHAPING,
    mixes,
    reshapes_evenly,
)
from stategate.export.frontends.lifting.probe import Probe
from stategate.export.frontends.lifting.windows import (
    checked,
    convolve,
    follow,
    join,
    pad,
    pick,
    piece,
    spread,
)
from stategate.export.frontends.lifting.work import Course, Lift, Mixed, Obstacle, Work, title
from stategate.export.passes.dataflow import inner_graphs, reads

_WINDOWS = {"Conv": convolve, "MaxPool": convolve, "AveragePool": convolve, "LpPool": convolve}
_WINDOWS |= {"ConvTranspose": spread}
# Over frames these have rules of their own; along other axes they pass frames on.
_PIECES: Mapping[str, Callable[[Work, ir.Node], None]] = {"Pad": pad, "Slice": piece}
_ALONG_TIME = {"Concat": join, "CumSum": add_up, "Gather": pick}
_LOOPS = {"Scan": scan, "Loop": loop}


@dataclass(frozen=True, slots=True)
class Lifted:
    """A file as a step of a stream."""

    model: onnx.ModelProto  # the step; of no use where there are obstacles
    inputs: dict[str, TensorSpec]  # what it takes beyond the new states, one step of frames each
    hop: int  # frames a step
    axes: dict[str, int]  # time axis by input
    # how each output of the file runs along time; None where it has the newest answer alone
    results: dict[str, Course | None]
    lifts: list[Lift]  # memory that became a state
    obstacles: list[Obstacle]  # what no state can stand for


def lifted(model: onnx.ModelProto, probe: Probe, constants: list[str]) -> Lifted:
    """Walk through a graph from its inputs, and turn each node over frames into one over a step."""
    work = Work(model, probe, constants)
    outputs = [str(value.name) for value in work.graph.outputs]
    obstacles = []
    for node in list(work.graph):
        try:
            _walk(work, node)
        except Mixed as problem:
            obstacles.append(Obstacle(title(node), str(problem)))
            _go_on_behind(work, node)
    results: dict[str, Course | None] = {}
    for value in work.graph.outputs:
        name = str(value.name)
        if name not in outputs:
            continue
        results[name] = course = work.courses.get(value)
        if value in work.lengths and work.same(value) is None:
            obstacles.append(Obstacle(f"output {name}", "depends on the length of the sequence"))
        if course is not None and (course.lead or course.tail) and not obstacles:
            longer = course.lead + course.tail
            obstacles.append(Obstacle(f"output {name}", f"has {longer} frames more than the input"))
    inputs = {
        str(v.name): TensorSpec(str(v.name), probe.inputs[str(v.name)], _dtype(v))
        for v in work.graph.inputs
        if v.name in probe.inputs and v.name not in constants
    }
    step = model if obstacles else _finished(work)
    return Lifted(step, inputs, probe.hop, dict(probe.axes), results, work.lifts, obstacles)


def _walk(work: Work, node: ir.Node) -> None:
    """Turn one node into what it is in a step."""
    if work.note_lengths(node):
        return
    sources = reads(node)
    running = [i for i, v in enumerate(node.inputs) if v in work.courses]
    if node.op_type in RECURRENT and running:
        recur(work, node)
        return
    if node.op_type in RECALLING and running:
        recall(work, node)
        return
    if not any(v in work.courses for v in sources):
        if any(work.growth(v) for v in node.outputs if v.name) and any(
            v in work.starts or v in work.ends for v in sources
        ):
            # A state that is repeated for every frame is another one in every step.
            raise Mixed("gives every frame the same part of a state, or of the end of the sequence")
        work.taint(node)
        return
    if inner_graphs(node):
        if node.op_type not in _LOOPS:
            raise Mixed("chooses between branches that take frames")
        _LOOPS[node.op_type](work, node)
        return
    first = node.inputs[running[0]]
    assert first is not None
    course = work.courses[first]
    if node.op_type in _WINDOWS and not node.domain:
        if running != [0] or course.axis == 1:
            raise Mixed("sums over all frames")
        if course.axis >= 2:
            _WINDOWS[node.op_type](work, node)
            return
        follow(work, node, course)
        return
    if node.op_type in _PIECES:
        _PIECES[node.op_type](work, node)
        return
    shapes = [work.shape(v) for v in node.inputs]
    if node.op_type in _ALONG_TIME and _is_along(work, node, course):
        _ALONG_TIME[node.op_type](work, node)
        return
    for at in running:
        if why := mixes(node, at, work.courses[node.inputs[at]].axis, shapes, work.opset):  # type: ignore[index]
            raise Mixed(why)
    _pass_on(work, node, running)


def _is_along(work: Work, node: ir.Node, course: Course) -> bool:
    """Whether the axis of a node is that of the frames."""
    rank = len(work.shape(node.inputs[0]) or work.shape(node.outputs[0]))
    if node.op_type == "CumSum":
        axis = work.same(node.inputs[1])
        return axis is not None and int(axis.reshape(-1)[0]) % rank == course.axis
    if node.op_type == "Gather" and node.inputs[0] not in work.courses:
        return False
    return node.attributes.get_int("axis", 0) % rank == course.axis


def _pass_on(work: Work, node: ir.Node, running: list[int]) -> None:
    """A node that takes frames one by one: all of its inputs have to be at the same one."""
    courses = {at: work.courses[node.inputs[at]] for at in running}  # type: ignore[index]
    extents = {at: work.shape(node.inputs[at]) for at in running}
    if len({course.rate for course in courses.values()}) > 1:
        raise Mixed("takes sequences of different rates")
    rate = courses[running[0]].rate
    lead = min(course.lead for course in courses.values())
    tail = max(course.lead + course.tail for course in courses.values()) - lead
    for at, course in courses.items():
        value = node.inputs[at]
        assert value is not None
        node.replace_input_with(at, work.cut(value, course, 0, lead))
    _check_partners(work, node, running)
    if node.op_type in RESHAPING | {"Expand"}:
        _reshape(work, node, Course(courses[0].axis, rate, lead, tail), extents[0])
        return
    for at in range(len(node.inputs)):
        if at not in running:
            work.settle(node, at, lead + work.frames(courses[running[0]]))
    follow(work, node, Course(courses[running[0]].axis, rate, lead, tail))
    for at, course in courses.items():
        _check_axis(work, node, course, len(extents[at]))


def _reshape(work: Work, node: ir.Node, course: Course, before: tuple[int, ...]) -> None:
    """Give frames another shape; whatever that was computed from, in a step it is this one."""
    source, result = node.inputs[0], node.outputs[0]
    growth, shape = work.growth(result), list(work.shape(result))
    assert source is not None
    if growth is None or not reshapes_evenly(before, course.axis, shape, growth.axis):
        raise Mixed("mixes frames with another axis")
    factor = growth.rate / course.rate
    lead, tail = course.lead * factor, course.tail * factor
    if lead.denominator != 1 or tail.denominator != 1:
        raise Mixed("cuts frames into pieces")
    after = checked(work, result, Course(growth.axis, growth.rate, int(lead), int(tail)))
    shape[growth.axis] = after.lead + work.frames(after)
    kind = "Expand" if node.op_type == "Expand" else "Reshape"
    new = work.write(kind, source, work.write.constant(shape, np.int64))
    work.become(node, new, after)


def _check_partners(work: Work, node: ir.Node, running: list[int]) -> None:
    for at, value in enumerate(node.inputs):
        if at in running or value is None:
            continue
        if value in work.ends:
            raise Mixed("brings the end of the sequence into every frame")
        if value in work.starts:
            raise Mixed(f"brings {value.name} into every frame, which is one for a whole call")


def _check_axis(work: Work, node: ir.Node, course: Course, before: int) -> None:
    """Refuse a node whose frames come out along an axis where they did not go in."""
    result = node.outputs[0]
    rank, after = len(work.shape(result)), work.courses[result].axis
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", range(rank)[::-1])
        right = perm[after] == course.axis
    elif node.op_type in ELEMENTWISE:
        right = rank - after == before - course.axis
    else:
        right = True
    if not right:
        raise Mixed("compares every frame with every other")


def _go_on_behind(work: Work, node: ir.Node) -> None:
    """Behind an obstacle go on as if it were none: to name the others, too."""
    for value in node.outputs:
        if not value.name or value.graph is None:
            continue
        try:
            growth = work.growth(value)
        except Mixed:
            growth = None
        if growth is None:
            work.free.add(value)
        else:
            work.courses[value] = Course(growth.axis, growth.rate, 0, growth.more)


def _finished(work: Work) -> onnx.ModelProto:
    """The step, without shapes that speak of a whole sequence."""
    graph, shapes = work.graph, work.probe.inputs
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    for value in graph.outputs:
        if str(value.name) in work.probe.runs[0]:
            value.shape = ir.Shape(_step_shape(work, value))
    graph.sort()
    RemoveUnusedNodesPass()(work.model)
    model = ir.to_proto(work.model)
    onnx.checker.check_model(model)
    return model


def _step_shape(work: Work, value: ir.Value) -> list[int]:
    shape = list(work.shape(value))
    if value in work.courses:
        course = work.courses[value]
        shape[course.axis] = work.frames(course)
    return shape


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return dtype_from_onnx(int(value.dtype)).name
