"""Which axis of a file is time, and what it remembers along it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from stategate.contract.errors import GraphError
from stategate.contract.failures import failures, first_line
from stategate.export.frontends.lifting.lift import Lifted, lifted
from stategate.export.frontends.lifting.probe import (
    NotTriedError,
    Probe,
    groups_of_axes,
    is_batch,
    is_first_everywhere,
    sequence_axes,
)
from stategate.export.frontends.lifting.work import UnevenHop, Work
from stategate.export.frontends.recurrent import STATES
from stategate.export.passes.constants import TakeDecidedBranches

_HOPS = 1 << 16  # frames a step, at most; sound has some hundred for each frame of features


@dataclass(frozen=True, slots=True)
class Question:
    """What the user says of the axes of a file."""

    dims: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, np.ndarray]
    time_axes: Mapping[str, int]

    def extents(self, value: onnx.ValueInfoProto) -> tuple[int, ...]:
        """Shape of an input, 1 where an axis is open and nobody says anything."""
        dims = value.type.tensor_type.shape.dim
        shape = tuple(d.dim_value or self.dims.get(d.dim_param, 1) for d in dims)
        wish = self.shapes.get(value.name, shape)
        return wish if len(wish) == len(shape) else shape


def as_stream(model: onnx.ModelProto, question: Question) -> Lifted:
    """A file as a step of a stream, with what it remembers as states."""
    model = _plain(model)
    groups = groups_of_axes(model, question.dims, question.shapes)
    axes, probe = _chosen(model, question, groups)
    pinned = {n for n, axis in axes.items() if n in question.shapes}
    pinned |= {n for n, axis in axes.items() if _label(model, n, axis) in question.dims}
    if not pinned:
        return _with_smallest_hop(model, question, axes)
    try:
        return _with_hop(model, question, axes, probe.hop)
    except UnevenHop as uneven:
        smallest = _with_smallest_hop(model, question, axes).hop
        raise GraphError(
            "a step of so many frames is no whole number of frames inside of the graph",
            found=f"{probe.hop} a step",
            expected=f"a multiple of {smallest}",
            remedy=_pin(model, axes, -(-probe.hop // smallest) * smallest),
        ) from uneven


def _with_smallest_hop(
    model: onnx.ModelProto, question: Question, axes: Mapping[str, int]
) -> Lifted:
    """As few frames a step as the strides of the graph allow."""
    hop = 1
    while hop <= _HOPS:
        try:
            return _with_hop(model, question, axes, hop)
        except UnevenHop as uneven:
            hop *= uneven.factor
    raise GraphError(
        "the strides of the graph ask for too many frames a step",
        found=f"{hop:,} frames",
        expected=f"at most {_HOPS:,}",
    )


def _with_hop(
    model: onnx.ModelProto, question: Question, axes: Mapping[str, int], hop: int
) -> Lifted:
    again = True
    while again:  # a branch that is taken may hold others
        probe = _probe(model, question, axes, hop)
        model, again = _without_decided_branches(model, probe, [*question.constants])
    return lifted(model, probe, [*question.constants])


def remembered(model: onnx.ModelProto, question: Question, *, sure: bool = True) -> Lifted | None:
    """The same for a window as the user pins it; None where nothing is known of time.

    To be ``sure``, something recurrent must go along the axis, unless the user names it.
    """
    try:
        return memory_along_time(model, question, sure=sure)
    except GraphError:
        return None


def memory_along_time(
    model: onnx.ModelProto, question: Question, *, sure: bool = True
) -> Lifted | None:
    """The same, with the reason why nothing is known of time."""
    inlined = _plain(model)
    if sure and not question.time_axes and next(sequence_axes(inlined), None) is None:
        return None
    groups = groups_of_axes(inlined, question.dims, question.shapes)
    axes, probe = _chosen(inlined, question, groups, sure=sure)
    try:
        return _with_hop(inlined, question, axes, probe.hop)
    except UnevenHop:
        return None


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without functions of its own, in which every last state has a name."""
    work = onnx.ModelProto()
    work.CopyFrom(onnx.inliner.inline_local_functions(model))
    for number, node in enumerate(work.graph.node):
        for place in STATES.get(node.op_type, {}).values():
            node.output.extend([""] * (place + 1 - len(node.output)))
            node.output[place] = node.output[place] or f"last state {number}.{place}"
    return work


def remedy_for(memory: Lifted) -> str:
    """What to do about memory that hides between the frames of one call."""
    if memory.obstacles:
        return (
            f"no state can stand for {', '.join(o.node for o in memory.obstacles)}; export a model "
            "with causal parts alone, or one whose memory is among its inputs and outputs"
        )
    return "add --lift, which makes each of these a state"


def _chosen(
    model: onnx.ModelProto,
    question: Question,
    groups: list[tuple[str, dict[str, int], int]],
    *,
    sure: bool = False,
) -> tuple[dict[str, int], Probe]:
    """The time axis by input, and the runs that showed it."""
    if question.time_axes:
        axes = _declared(model, question.time_axes)
        return axes, _probe(model, question, axes, None)
    groups = [(label, axes, n) for label, axes, n in groups if not {*axes} & {*question.constants}]
    along = list(sequence_axes(model))
    possible = []
    untried = []
    reason: GraphError | None = None  # why the likeliest axis with a name is not time
    for label, axes, extent in groups:
        rows = is_first_everywhere(model, label)  # time only if a recurrent node goes along it
        if is_batch(label) or (rows and not along):
            continue
        try:
            probe = _probe(model, question, axes, extent)
        except GraphError as problem:
            if isinstance(problem, NotTriedError):
                untried += [
                    f"axis {i} of {n} is not tried ({problem.amount})" for n, i in axes.items()
                ]
            reason = reason or (None if label.startswith("axis ") else problem)
            continue
        if any(_grows_along(probe, name, axis) for name, axis in along):
            return axes, probe
        if not rows:
            possible.append((label, axes, probe))
    open_ones = [(axes, probe) for label, axes, probe in possible if not label.startswith("axis ")]
    if len(open_ones) == 1 and not sure:
        return open_ones[0]
    # Whoever must be sure has to know that the likeliest axis was left out.
    if reason and (not possible or (sure and isinstance(reason, NotTriedError))):
        raise reason
    listed = [f"--time-axis {n}={i}" for _, axes, _ in possible for n, i in axes.items()]
    raise GraphError(
        "which axis is time does not show in the graph",
        found="; ".join(
            [", ".join(listed) or "no axis along which it takes sequences of any length", *untried]
        ),
        expected="a recurrent node, or a single axis that is open and no batch",
        remedy=f"say which it is: {listed[0]}"
        if listed
        else "export the model with a time axis of any length (dynamic_axes or dynamic_shapes of "
        "torch.onnx.export), or say which it is with --time-axis INPUT=AXIS",
    )


def _declared(model: onnx.ModelProto, time_axes: Mapping[str, int]) -> dict[str, int]:
    """The axes that the user named, and those that share their names."""
    values = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    axes = {}
    for name, axis in time_axes.items():
        dims = values.get(name)
        if dims is None or not -len(dims) <= axis < len(dims):
            raise GraphError(
                "a time axis is for something that the graph does not take",
                found=f"--time-axis {name}={axis}",
                expected="; ".join(f"{n} with {len(d)} axes" for n, d in values.items()),
            )
        axes[name] = axis % len(dims)
        shared = dims[axis].dim_param
        if shared:
            axes |= {
                n: i for n, d in values.items() for i, e in enumerate(d) if e.dim_param == shared
            }
    return axes


def _probe(
    model: onnx.ModelProto, question: Question, axes: Mapping[str, int], hop: int | None
) -> Probe:
    """Both runs."""
    inputs = {
        value.name: question.extents(value)
        for value in model.graph.input
        if value.name not in {*question.constants, *(t.name for t in model.graph.initializer)}
    }
    for name, axis in axes.items():
        shape = inputs[name]
        inputs[name] = tuple((hop or e) if i == axis else e for i, e in enumerate(shape))
    try:
        return Probe(model, inputs, question.constants, axes)
    except GraphError:
        raise
    except failures() as problem:  # ONNX Runtime raises a dozen unrelated types
        raise GraphError(
            "the file does not take sequences of any length",
            found=first_line(problem),
            expected="; ".join(f"any length of axis {axis} of {n}" for n, axis in axes.items()),
            remedy="export the model with a time axis of any length (dynamic_axes or "
            "dynamic_shapes of torch.onnx.export), or name another axis with --time-axis",
        ) from problem


def _grows_along(probe: Probe, name: str, axis: int) -> bool:
    try:
        growth = probe.growth(name)
    except ValueError:
        return False
    return growth is not None and growth.axis == axis % len(probe.runs[0][name].shape)


def _label(model: onnx.ModelProto, name: str, axis: int) -> str:
    value = next(v for v in model.graph.input if v.name == name)
    return str(value.type.tensor_type.shape.dim[axis].dim_param)


def _pin(model: onnx.ModelProto, axes: Mapping[str, int], hop: int) -> str:
    name, axis = next(iter(axes.items()))
    label = _label(model, name, axis)
    return f"--dim {label}={hop}" if label else f"a --shape for {name} with {hop} on axis {axis}"


def _without_decided_branches(
    model: onnx.ModelProto, probe: Probe, constants: list[str]
) -> tuple[onnx.ModelProto, bool]:
    """The file with each branch taken that both runs took, where no data decides it."""
    branches = [node for node in model.graph.node if node.op_type == "If"]
    if not branches:
        return model, False
    work = Work(model, probe, constants)
    for node in work.graph:
        decided = work.same(node.inputs[0]) if node.op_type == "If" else None
        if decided is not None:
            node.replace_input_with(0, work.write.constant(bool(decided.all()), np.bool_))
        work.note_lengths(node)
    changed = TakeDecidedBranches()(work.model).modified
    return (ir.to_proto(work.model), True) if changed else (model, False)
