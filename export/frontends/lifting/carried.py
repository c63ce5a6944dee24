"""What carries something from frame to frame: recurrent nodes, loops, running sums."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from stategate.export.frontends.lifting.windows import checked
from stategate.export.frontends.lifting.work import Course, Mixed, Work
from stategate.export.frontends.recurrent import STATES, frames_axis
from stategate.export.passes.dataflow import inner_graphs

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
RECALLING = frozenset({"LinearAttention", "CausalConvWithState"})
_IN_WORDS = {"h": "its hidden state", "c": "its cell state", "state": "its state"}
# What may stand between the number of a round and the frame that it picks.
_SAME_NUMBER = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def recur(work: Work, node: ir.Node) -> None:
    """A GRU, LSTM or RNN over frames: what it begins with becomes a state."""
    value = node.inputs[0]
    assert value is not None
    course = work.courses.get(value)
    layout = node.attributes.get_int("layout", 0)
    if any(other in work.courses for other in node.inputs[1:4]):
        raise Mixed("has weights that are computed from the frames")
    if course is None:
        raise Mixed("begins each frame with a state that is computed from it")
    if course.axis == 1 - layout:  # frames are rows here, each with a sequence of its own
        rows = work.frames(course) + course.lead
        for at in range(4, min(7, len(node.inputs))):
            work.settle(node, at, rows)
        for result in node.outputs:
            if result.name:
                work.courses[result] = checked(work, result, course)
        return
    if course.axis != layout:
        raise Mixed("takes all frames as one vector")
    if node.attributes.get_string("direction", "forward") != "forward":
        direction = node.attributes.get_string("direction", "")
        raise Mixed(f"is {direction}: it also reads the sequence from its end")
    if course.lead or course.tail:
        raise Mixed("reads frames of padding, which a state would see more than once")
    _whole_length(work, node)
    _begin_from_states(work, node, course, ("h", "c"))


def recall(work: Work, node: ir.Node) -> None:
    """An operator that has a state among its inputs already, and is not given one."""
    for value in node.inputs[:3] if node.op_type == "LinearAttention" else node.inputs[:1]:
        course = work.courses.get(value) if value is not None else None
        if course is None or course.lead or course.tail:
            raise Mixed("takes inputs that are not at the same frame")
        if course.axis != frames_axis(node, len(work.shape(value))):
            raise Mixed("does not go along the frames")
    if any(value in work.courses for value in node.inputs[3:4]):
        raise Mixed("begins with a state that is computed from the sequence")
    _begin_from_states(work, node, course, ("state",))  # type: ignore[arg-type]


def _begin_from_states(work: Work, node: ir.Node, course: Course, labels: tuple[str, ...]) -> None:
    """Make a state of each constant that a node begins with, zeros where it has none."""
    places = STATES[node.op_type]
    node.resize_inputs(max(len(node.inputs), max(places) + 1))
    for label, (place, after) in zip(labels, places.items(), strict=False):
        start, result = node.inputs[place], node.outputs[after]
        initial = np.zeros_like(work.runs(result)[0]) if start is None else work.same(start)
        if initial is not None:
            state = work.carried(node, label, _IN_WORDS[label], initial)
            node.replace_input_with(place, state)
            work.give_next(state, result)
        elif start not in work.starts:
            raise Mixed("begins with a state that is computed from the sequence")
        work.ends.add(result)
    if node.outputs[0].name:
        work.courses[node.outputs[0]] = checked(work, node.outputs[0], course)


def add_up(work: Work, node: ir.Node) -> None:
    """A running sum begins with what it was."""
    value = node.inputs[0]
    assert value is not None
    course = work.courses[value]
    if node.attributes.get_int("reverse", 0):
        raise Mixed("sums from the end of the sequence")
    if course.lead or course.tail:
        raise Mixed("sums frames of padding, which a state would see more than once")
    rest = node.outputs[0]
    sums = work.write("CumSum", *node.inputs, exclusive=node.attributes.get_int("exclusive", 0))
    state = work.carried(node, "sum", "its sum", work.filled(value, course, 1, 0))
    total = work.write("Add", sums, state)
    last = work.slice(total, -1, np.iinfo(np.int64).max, course.axis)
    if node.attributes.get_int("exclusive", 0):  # the last frame is not in it yet
        last = work.write("Add", last, work.slice(value, -1, np.iinfo(np.int64).max, course.axis))
    work.give_next(state, last)
    work.become(node, total, checked(work, rest, course))


def scan(work: Work, node: ir.Node) -> None:
    """A Scan over frames: what it carries becomes a state."""
    count = node.attributes.get_int("num_scan_inputs", 0)
    carried = len(node.inputs) - count
    axes = node.attributes.get_ints("scan_input_axes", [])
    inner = [v for graph in inner_graphs(node) for v in _outer(work, graph)]
    if any(v in work.courses or v in work.ends for v in inner):
        raise Mixed("reads the whole sequence in each round")
    for i, value in enumerate(node.inputs[carried:]):
        course = work.courses.get(value) if value is not None else None
        rank = len(work.shape(value))
        if course is None or course.axis != (axes[i] if i < len(axes) else 0) % rank:
            raise Mixed("does not go along the frames")
        if course.lead or course.tail:
            raise Mixed("reads frames of padding, which a state would see more than once")
    sides = ("scan_input_directions", "scan_output_directions")
    if any(any(node.attributes.get_ints(name, [])) for name in sides):
        raise Mixed("reads the sequence from its end")
    course = work.courses[node.inputs[carried]]  # type: ignore[index]
    _carry(work, node, 0, carried, course)


def loop(work: Work, node: ir.Node) -> None:
    """A Loop with one round a frame: what it carries becomes a state."""
    body = node.attributes["body"].as_graph()
    rounds = node.inputs[0]
    courses = [work.courses[v] for v in _outer(work, body) if v in work.courses]
    if any(v in work.courses or v in work.ends for v in node.inputs) or not courses:
        raise Mixed("carries the whole sequence from round to round")
    course = courses[0]
    counts = [int(run.reshape(-1)[0]) for run in work.runs(rounds)] if rounds is not None else []
    growth = [course.rate * frames for frames in work.probe.frames]
    if rounds not in work.lengths or counts != growth:
        raise Mixed("has another number of rounds than there are frames")
    _ends_with_its_rounds(work, node, body)
    numbers = {body.inputs[0]}
    for inner in ir.traversal.RecursiveGraphIterator(body):
        for at, value in enumerate(inner.inputs):
            if value in work.ends:
                raise Mixed("reads the end of the sequence in each round")
            own = work.courses.get(value) if value is not None else None
            picks = inner.op_type == "Gather" and at == 0 and inner.inputs[1] in numbers
            if own is not None and not (
                picks
                and inner.attributes.get_int("axis", 0) % len(work.shape(value)) == own.axis
                and not own.lead
                and not own.tail
                and own.rate == course.rate
            ):
                raise Mixed("reads other frames than the one of its round")
            if value in numbers:
                if inner.op_type in _SAME_NUMBER:
                    numbers.update(inner.outputs)
                elif not (inner.op_type == "Gather" and at == 1):
                    raise Mixed("computes with the number of its round")
    node.replace_input_with(0, work.write.constant(work.frames(course), np.int64))
    _carry(work, node, 2, len(node.inputs), course)


def _carry(work: Work, node: ir.Node, first: int, end: int, course: Course) -> None:
    """Make a state of each constant that a loop begins with."""
    for i, at in enumerate(range(first, end)):
        start, result = node.inputs[at], node.outputs[i]
        initial = work.same(start)
        if initial is not None:
            if not result.name:
                result.name = f"{node.name or node.op_type}.{i} after"
            short, long = (
                work.runs(result) if str(result.name) in work.probe.runs[0] else (initial,) * 2
            )
            if not short.shape == long.shape == initial.shape:
                raise Mixed("carries something that grows with the sequence")
            state = work.carried(node, f"carried{i}", f"what it carries in place {i}", initial)
            node.replace_input_with(at, state)
            work.give_next(state, result)
        elif start not in work.starts:
            raise Mixed("begins with something that is computed from the sequence")
        work.ends.add(result)
    for result in node.outputs[end - first :]:
        if result.name:
            work.courses[result] = checked(work, result, Course(0, course.rate))


def _whole_length(work: Work, node: ir.Node) -> None:
    """Leave out lengths of sequences that say that each is as long as the whole."""
    lengths = node.inputs[4] if len(node.inputs) > 4 else None
    if lengths is None:
        return
    whole = [work.courses[node.inputs[0]].rate * frames for frames in work.probe.frames]  # type: ignore[index]
    if lengths not in work.lengths or any(
        (run != frames).any() for run, frames in zip(work.runs(lengths), whole, strict=True)
    ):
        raise Mixed("takes sequences of different lengths")
    node.replace_input_with(4, None)


def _ends_with_its_rounds(work: Work, node: ir.Node, body: ir.Graph) -> None:
    """Refuse a loop that may end before its last frame."""
    condition = node.inputs[1]
    begins = condition is None or (array := work.same(condition)) is not None and bool(array.all())
    result: ir.Value | None = body.outputs[0]
    while result is not None and (maker := result.producer()) is not None:
        if maker.op_type != "Identity":
            break
        result = maker.inputs[0]
    constant = None if result is None else ir.convenience.get_const_tensor(result)
    goes_on = result is body.inputs[1] or (constant is not None and bool(constant.numpy().all()))
    if not begins or not goes_on:
        raise Mixed("may end before the sequence does")


def _outer(work: Work, graph: ir.Graph) -> list[ir.Value]:
    """What a body reads of the graph around it."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    values = [v for node in nodes for v in node.inputs if v is not None]
    return [v for v in dict.fromkeys([*values, *graph.outputs]) if v.graph is work.graph]
