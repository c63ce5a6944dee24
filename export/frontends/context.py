"""A step that hears the end of what it was given before: the context of an input as a state.

Some networks want each window of a signal with the last samples of the window before in front. Who
forgets them gets no error, and a network that is as good as deaf. Here the samples in front become
a state, the caller hands over the new ones alone, and the adopted graph itself stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stategate.contract import StateSpec, TensorSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.graph import every_node


def context_of(taken: TensorSpec, count: int) -> tuple[TensorSpec, StateSpec]:
    """The new samples that a caller hands over, and the state of those before.

    Args:
        taken: What the graph takes, context and all, along its last axis.
        count: How much of it is context.

    Raises:
        GraphError: There is no such axis, or nothing new would be left.
    """
    if not taken.shape or not 0 < count < taken.shape[-1]:
        raise GraphError(
            f"input {taken.name!r} has no room for this context",
            found=f"--context {taken.name}={count} of {list(taken.shape)}",
            expected="fewer than the extent of its last axis, which is context and new samples",
        )
    *rest, length = taken.shape
    new = TensorSpec(taken.name, (*rest, length - count), taken.dtype)
    return new, StateSpec(f"{taken.name}.context", (*rest, count), taken.dtype)


def with_context(model: onnx.ModelProto, new: TensorSpec, kept: StateSpec) -> onnx.ModelProto:
    """The graph behind a node that puts the context in front of an input.

    Args:
        model: Takes both in one input; left as it is.
        new: See `context_of`.
        kept: The same.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    joined = f"{new.name}.joined"
    for node in every_node(work.graph):
        for at, name in enumerate(node.input):
            node.input[at] = joined if name == new.name else name
    taken = next(value for value in work.graph.input if value.name == new.name)
    context, after = (_resized(taken, n, kept.shape[-1]) for n in (kept.name, kept.next_name))
    taken.CopyFrom(_resized(taken, new.name, new.shape[-1]))
    work.graph.input.append(context)
    work.graph.output.append(after)
    bounds = {"start": -kept.shape[-1], "end": np.iinfo(np.int64).max, "axis": len(new.shape) - 1}
    names = {what: f"{joined}.{what}" for what in bounds}
    work.graph.initializer.extend(
        numpy_helper.from_array(np.array([bounds[what]], np.int64), name)
        for what, name in names.items()
    )
    in_front = helper.make_node("Concat", [kept.name, new.name], [joined], axis=-1)
    last = helper.make_node("Slice", [joined, *names.values()], [kept.next_name])
    nodes = [in_front, last, *work.graph.node]
    del work.graph.node[:]
    work.graph.node.extend(nodes)
    onnx.checker.check_model(work)
    return work


def _resized(taken: onnx.ValueInfoProto, name: str, length: int) -> onnx.ValueInfoProto:
    """The same tensor with another name and last extent; what is open in the file stays open.

    A branch that is never taken may not have the shapes that are pinned, and is loaded all the
    same.
    """
    value = onnx.ValueInfoProto()
    value.CopyFrom(taken)
    value.name = name
    last = value.type.tensor_type.shape.dim[-1]
    is_open = not last.HasField("dim_value")
    last.Clear()
    if not is_open:
        last.dim_value = length
    return value
