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
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.contract.tensorrt_plan import GUARD
from stategate.export.passes.dataflow import constant_of
from stategate.export.passes.graph import Writer
from stategate.export.passes.pinned import pinned
from stategate.export.tensorrt.generations import Generation
from stategate.export.tensorrt.rewrite import (
    lower_node,
    read_model,
    replace_node,
    writer_for,
)
from stategate.export.tensorrt.rules import check_legal


@dataclass(frozen=True, slots=True)
class Variant:
    """A step for one generation of TensorRT."""

    graph: bytes  # serialised ONNX
    guarded: tuple[str, ...]  # states whose next values the guard output sums, in its order


def variant(raw: bytes, spec: StepSpec, generation: Generation) -> Variant:
    """The form of a step that a generation of TensorRT takes."""
    step = pinned(onnx.load_model_from_string(raw), spec)
    check_legal(step, spec, generation)
    model = read_model(step)
    passes: list[ir.passes.PassBase] = [common.ClearMetadataAndDocStringPass()]
    if not generation.strongly_typed:
        passes.append(WidenStoredWeights())
    passes += [
        Lower(generation),
        AddGuard(spec),
        # The flags of a build are chosen by the types of initializers.
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
    ]
    ir.passes.Sequential(*passes)(model)
    work = ir.to_proto(model)
    del work.graph.value_info[:]  # inferred for the operators that were there before
    try:
        onnx.checker.check_model(work)
    except onnx.checker.ValidationError as problem:
        raise GraphError(
            f"the graph has no valid form for TensorRT {generation.name}", found=str(problem)
        ) from problem
    return Variant(work.SerializeToString(deterministic=True), guarded_states(spec))


def guarded_states(spec: StepSpec) -> tuple[str, ...]:
    """States whose next values the guard sums."""
    return tuple(state.name for state in spec.states if state.dtype == "float32")


class Lower(ir.passes.InPlacePass):
    """Every node in the form of the generation's opset.

    Requires a graph that passed `check_legal`. Guarantees that no operator is left that the
    generation's parser lacks.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the nodes, then name the opset that they are of."""
        own = model.graph.opset_imports[""]
        for node in tuple(model.graph):
            lower_node(node, own, self._generation)
        model.graph.sort()
        model.graph.opset_imports[""] = opset = min(own, self._generation.opset)
        if opset < 19:  # the form of file that the parsers of that time read
            model.ir_version = min(model.ir_version, 8)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Look for operators that the parser lacks."""
        lacking = {node.op_type for node in model.graph} & self._generation.lacks
        if lacking:
            raise ir.passes.PostconditionError(f"{lacking} left for {self._generation.name}")


class WidenStoredWeights(ir.passes.InPlacePass):
    """Weights that are only stored in fewer bits become float32: the same numbers.

    Releases that choose types themselves would take a float16 or int8 constant as leave to compute
    in it. A weight whose partner is quantised too stays, because that product is meant in int8.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each Cast and DequantizeLinear of constants by its result."""
        wide = [(node, array) for node in model.graph if (array := _widened(node)) is not None]
        # Only now, because a partner of a product must still be seen as quantised.
        for node, array in wide:
            replace_node(node, writer_for(node).constant(array, np.float32))
        return ir.passes.PassResult(model, modified=bool(wide))


def _widened(node: ir.Node) -> NDArray[np.float32] | None:
    """What a node makes of constants, where that is only a wider form of a stored weight."""
    constants = [constant_of(value) for value in node.inputs if value is not None]
    arrays = [array for array in constants if array is not None]
    if not arrays or len(arrays) < len(constants):
        return None
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
        return arrays[0].astype(np.float32)
    if node.op_type != "DequantizeLinear" or arrays[1].dtype != np.float32:
        return None
    weight, stored, scale = node.outputs[0], arrays[0], arrays[1]
    partners = {value for user in weight.consumers() for value in user.inputs} - {weight, None}
    makers = [value.producer() for value in partners if value is not None]
    if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return None
    extents = [1] * stored.ndim
    if scale.size > 1:
        extents[node.attributes.get_int("axis", 1)] = -1
    wide: NDArray[np.float32] = stored.astype(np.float32) * scale.reshape(extents)
    return wide


class AddGuard(ir.passes.InPlacePass):
    """One output more, ``GUARD``: the sum of magnitudes of each next state that is guarded."""

    def __init__(self, spec: StepSpec) -> None:
        guarded = guarded_states(spec)
        self._next = [state.next_name for state in spec.states if state.name in guarded]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Append the sums, and a Concat that is a new output."""
        if not self._next:
            return ir.passes.PassResult(model, modified=False)
        outputs = {value.name: value for value in model.graph.outputs}
        write = Writer(model.graph, GUARD)
        one = write.constant([1], np.int64)
        totals = [
            write("ReduceSum", write("Abs", outputs[name]), keepdims=0) for name in self._next
        ]
        sums = [write("Reshape", total, one) for total in totals]
        guard = write("Concat", *sums, output=GUARD, axis=0)
        guard.type, guard.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([len(sums)])
        model.graph.outputs.append(guard)
        return ir.passes.PassResult(model, modified=True)
