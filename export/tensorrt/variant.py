"""The graph that TensorRT gets: made from the bundle's own, for one generation of releases.

The bundle's ONNX file stays what it is; this form of it exists only beside a plan. Its axes and
constants are those of the manifest, and it is folded. It is of the generation's opset, has what its
parser lacks written in simpler operators, and one output more: for each float state the sum of the
magnitudes of its next value. States stay on the GPU, and that sum is finite only where every
element is (an addition hands NaN and infinity on, which a maximum does not), so the guard against
NaN needs a few bytes of each step and no copy of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.contract.tensorrt_plan import GUARD
from stategate.export.passes.graph import without_traces_of_the_build
from stategate.export.passes.pinned import pinned
from stategate.export.tensorrt.rewrite import Names, attribute_of, facts_of, rewritten
from stategate.export.tensorrt.rules import Generation, check_legal

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Variant:
    """A step for one generation of TensorRT.

    Attributes:
        graph: Serialised ONNX.
        guarded: States whose next values the guard output sums, in its order.
    """

    graph: bytes
    guarded: tuple[str, ...]


def variant(raw: bytes, spec: StepSpec, generation: Generation) -> Variant:
    """The form of a step that a generation of TensorRT takes.

    Args:
        raw: The bundle's step graph.
        spec: Its signature.
        generation: Which releases it is for.

    Raises:
        GraphError: That generation would not take it.
    """
    model = pinned(onnx.load_model_from_string(raw), spec)
    check_legal(model, spec, generation)
    del model.graph.value_info[:]  # other operators are to come
    work = without_traces_of_the_build(model)
    if not generation.strongly_typed:
        _widen_stored_weights(work)
    _rewrite(work, generation)
    guarded = _guard(work, spec)
    try:
        onnx.checker.check_model(work)
    except onnx.checker.ValidationError as problem:
        raise GraphError(
            f"the graph has no valid form for TensorRT {generation.name}", found=str(problem)
        ) from problem
    return Variant(work.SerializeToString(deterministic=True), guarded)


def _rewrite(work: onnx.ModelProto, generation: Generation) -> None:
    """Every node in the form of the generation's opset."""
    facts, names = facts_of(work), Names()
    nodes = [
        new
        for node in work.graph.node
        for new in rewritten(node, facts, generation.opset, generation.lacks, names)
    ]
    kept = onnx.GraphProto(node=nodes).node
    work.graph.ClearField("node")
    work.graph.node.extend(kept)
    work.graph.initializer.extend(names.made)
    target = min(facts.opset, generation.opset)
    for entry in work.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    if target < 19:  # the form of file that the parsers of that time read
        work.ir_version = min(work.ir_version, 8)


def _widen_stored_weights(work: onnx.ModelProto) -> None:
    """Weights that are only stored in fewer bits become float32: the same numbers.

    Releases that choose types themselves would take a float16 or int8 constant as leave to compute
    in it. A weight whose partner is quantised too stays, because that product is meant in int8.
    """
    constants = {t.name: t for t in work.graph.initializer}
    makers = {name: node for node in work.graph.node for name in node.output}
    users = [(name, node) for node in work.graph.node for name in node.input]
    wide: dict[str, np.ndarray] = {}
    for node in work.graph.node:
        if not node.input or any(name and name not in constants for name in node.input):
            continue
        values = [numpy_helper.to_array(constants[n]) for n in node.input if n]
        if node.op_type == "Cast" and attribute_of(node, "to", 0) == _FLOAT:
            wide[node.output[0]] = values[0].astype(np.float32)
        elif node.op_type == "DequantizeLinear":
            partners = [
                makers[other].op_type
                for name, user in users
                if name == node.output[0]
                for other in user.input
                if other != name and other in makers
            ]
            scale = values[1]
            if "DequantizeLinear" not in partners and scale.dtype == np.float32:
                extents = [1] * values[0].ndim
                if scale.size > 1:
                    extents[attribute_of(node, "axis", 1)] = -1
                wide[node.output[0]] = values[0].astype(np.float32) * scale.reshape(extents)
    kept = onnx.GraphProto(node=[n for n in work.graph.node if n.output[0] not in wide]).node
    work.graph.ClearField("node")
    work.graph.node.extend(kept)
    work.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in wide.items())
    used = {name for node in work.graph.node for name in node.input}
    used |= {value.name for value in work.graph.output}
    left = onnx.GraphProto(initializer=[t for t in work.graph.initializer if t.name in used])
    work.graph.ClearField("initializer")
    work.graph.initializer.extend(left.initializer)


def _guard(work: onnx.ModelProto, spec: StepSpec) -> tuple[str, ...]:
    """Add the guard output; the states that it sums."""
    guarded = [state for state in spec.states if state.dtype == "float32"]
    if not guarded:
        return ()
    one = f"{GUARD}_shape"
    work.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
    sums = []
    for state in guarded:
        magnitude, total, flat = (f"{GUARD}_{part}_{state.name}" for part in ("abs", "sum", "one"))
        sums.append(flat)
        work.graph.node.extend(
            [
                helper.make_node("Abs", [state.next_name], [magnitude]),
                helper.make_node("ReduceSum", [magnitude], [total], keepdims=0),
                helper.make_node("Reshape", [total, one], [flat]),
            ]
        )
    work.graph.node.append(helper.make_node("Concat", sums, [GUARD], axis=0))
    work.graph.output.append(helper.make_tensor_value_info(GUARD, _FLOAT, [len(guarded)]))
    return tuple(state.name for state in guarded)
