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


def context_of(whole: TensorSpec, count: int) -> tuple[TensorSpec, StateSpec]:
    """The new samples that a caller hands over, and the state of those before."""
    if not whole.shape or not 0 < count < whole.shape[-1]:
        raise GraphError(
            f"input {whole.name!r} has no room for this context",
            found=f"--context {whole.name}={count} of {list(whole.shape)}",
            expected="fewer than the extent of its last axis, which is context and new samples",
        )
    *rest, length = whole.shape
    new = TensorSpec(whole.name, (*rest, length - count), whole.dtype)
    return new, StateSpec(f"{whole.name}.context", (*rest, count), whole.dtype)


def with_context(model: onnx.ModelProto, new: TensorSpec, state: StateSpec) -> onnx.ModelProto:
    """A copy of the graph behind a node that puts the context in front of an input.

    No pass of onnx-ir: everything else of a stranger's file stays as it is, byte for byte.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    joined = f"{new.name}.joined"
    for node in every_node(work.graph):
        for at, name in enumerate(node.input):
            node.input[at] = joined if name == new.name else name
    whole = next(value for value in work.graph.input if value.name == new.name)
    work.graph.input.append(_resized(whole, state.name, state.shape[-1]))
    work.graph.output.append(_resized(whole, state.next_name, state.shape[-1]))
    whole.CopyFrom(_resized(whole, new.name, new.shape[-1]))
    # The last samples, up to whatever the end is, become the context of the next step.
    bounds = {"start": -state.shape[-1], "end": np.iinfo(np.int64).max, "axis": len(new.shape) - 1}
    for what, bound in bounds.items():
        array = np.array([bound], np.int64)
        work.graph.initializer.append(numpy_helper.from_array(array, f"{joined}.{what}"))
    in_front = helper.make_node("Concat", [state.name, new.name], [joined], axis=-1)
    names = [joined, *(f"{joined}.{what}" for what in bounds)]
    nodes = [in_front, helper.make_node("Slice", names, [state.next_name]), *work.graph.node]
    del work.graph.node[:]
    work.graph.node.extend(nodes)
    onnx.checker.check_model(work)
    return work


def _resized(whole: onnx.ValueInfoProto, name: str, length: int) -> onnx.ValueInfoProto:
    """The same tensor with another name and last extent; what is open in the file stays open.

    A branch that is never taken may not have the shapes that are pinned, and is loaded all the
    same.
    """
    value = onnx.ValueInfoProto()
    value.CopyFrom(whole)
    value.name = name
    last = value.type.tensor_type.shape.dim[-1]
    is_open = not last.HasField("dim_value")
    last.Clear()
    if not is_open:
        last.dim_value = length
    return value
