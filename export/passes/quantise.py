"""A precision plan applied to a traced step, by ONNX Runtime's own quantisers.

Only projections are quantised: MatMul, Gemm and Conv whose weight is an initialiser. Products of
two activations (a memory read, an attention score) and everything elementwise stay float32, and
so do all states. Two kinds of projection stay float32 unless a plan asks otherwise:

* ``gates``: one whose result reaches a gate without passing another projection, or reaches
  nothing but gates. A gate that is off by a rounding error writes the wrong thing for ever.
* ``recurrence``: one that reads a state without passing another projection, and from whose result
  that same state's next value is computed. Its rounding error is fed back to it.

A gate's influence through its own decision does not count as reaching.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from stategate.contract import StepSpec
from stategate.contract.errors import CalibrationError, ExportError, SpecError
from stategate.contract.precision import GATES, RECURRENCE, PrecisionPlan
from stategate.export.passes.dataflow import values_of
from stategate.export.passes.graph import after_passes, without_traces_of_the_build

INT4_BLOCK = 32
_KINDS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True, slots=True)
class Projection:
    """A node that a plan may quantise."""

    group: str  # its name in plans: that of its weight
    node: str  # its name in the graph
    data: str  # the tensor that it projects
    weight: str  # the initialiser that it projects with
    role: str  # ``gates``, ``recurrence``, or empty
    elements: int  # size of its weight


def projections(model: onnx.ModelProto, spec: StepSpec) -> list[Projection]:
    """Every node of a step that may be quantised, in the graph's order."""
    graph = ir.from_proto(model).graph
    values = values_of(graph)
    gates = [values[gate.name] for gate in spec.gates]
    nodes = [node for node in graph if node.op_type in _KINDS and _weight_of(node)]

    def behind(names: Iterable[str], *, through_projections: bool) -> set[ir.Node]:
        """The projections that some values are computed from."""
        waiting = [values[name] for name in names]
        visited, projections = set(waiting), set()
        while waiting:
            node = waiting.pop().producer()
            if node is None:
                continue
            if node in nodes:
                projections.add(node)
                if not through_projections:
                    continue
            # A gate decides and does not feed: what it is computed from is not what it decides on.
            fresh = {v for v in node.inputs if v is not None} - visited - {*gates}
            visited |= fresh
            waiting += fresh
        return projections

    def ahead(name: str) -> set[ir.Node]:
        """The projections that a value reaches without passing another."""
        reached = {values[name]}
        projections = set()
        for node in graph:  # ONNX keeps nodes in an order in which they can run
            if not reached.isdisjoint(node.inputs):
                if node in nodes:
                    projections.add(node)
                else:
                    reached |= {*node.outputs} - {*gates}
        return projections

    before_gates = behind((gate.name for gate in spec.gates), through_projections=False)
    results = [t.name for t in spec.outputs] + [s.next_name for s in spec.states]
    useful = behind(results, through_projections=True)
    recurrent: set[ir.Node] = set()
    for state in spec.states:
        recurrent |= ahead(state.name) & behind([state.next_name], through_projections=True)
    result = []
    for node in nodes:
        data, weight = node.inputs[0], _weight_of(node)
        assert data is not None
        assert weight is not None
        group = str(weight.name).removeprefix("model.").removesuffix(".weight") or str(node.name)
        role = GATES if node in before_gates or node not in useful else ""
        role = role or (RECURRENCE if node in recurrent else "")
        size = weight.const_value.size if weight.const_value is not None else 0
        names = (str(node.name), str(data.name), str(weight.name))
        result.append(Projection(group, *names, role, size))
    return result


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The initialiser that a node projects a computed value with; None where it does not."""
    data, weight = node.inputs[:2]
    is_weight = weight is not None and weight.is_initializer()
    return weight if is_weight and data is not None and not data.is_initializer() else None


def chosen(plan: PrecisionPlan, every: list[Projection]) -> list[Projection]:
    """The projections that a plan quantises; an error where there is none."""
    float_weights: set[str] = set()
    for name in plan.keep_float:
        matches = {p.weight for p in every if name == p.role or fnmatchcase(p.group, name)}
        if not matches and name not in (GATES, RECURRENCE):
            raise SpecError(
                "keep_float names a group that the model does not have",
                found=name,
                expected=", ".join(sorted(p.group for p in every)) or "nothing: no projections",
            )
        float_weights |= matches
    # By weight and not by node: a weight has one form for all nodes that read it.
    narrow = [p for p in every if p.weight not in float_weights]
    if not narrow:
        raise ExportError(
            "the plan quantises nothing",
            found=f"{len(every)} projections, {len(every)} of them kept in float",
            expected="at least one MatMul, Gemm or Conv whose weight is an initialiser",
            remedy="take names out of keep_float, or export in float32",
        )
    return narrow


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants of a graph, scales among them."""
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


def quantised(
    model: onnx.ModelProto,
    spec: StepSpec,
    plan: PrecisionPlan,
    limits: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """A float32 step with its projections in fewer bits, symmetric throughout; states stay.

    ``int4`` weights become ``com.microsoft``'s MatMulNBits, all else standard QuantizeLinear and
    DequantizeLinear, or Cast. Activations in int8 need ``limits``: the symmetric range of each
    tensor, by name.

    Raises:
        SpecError: The plan names groups that the model lacks.
        CalibrationError: A range is missing.
        ExportError: Nothing is left to quantise, or the library did less than it was asked for.
    """
    if plan.weights == "float32":
        return model
    nodes = chosen(plan, projections(model, spec))
    _check_types(model, nodes)
    if plan.weights == "float16":
        return after_passes(model, _StoreInHalf({p.weight for p in nodes}))
    work = onnx.ModelProto()
    work.CopyFrom(model)
    ONNXModel(work).replace_gemm_with_matmul()  # the one form that every quantiser here takes
    new_names = {p.node for p in nodes} | {f"{p.node}_MatMul" for p in nodes}
    names = [node.name for node in work.graph.node if node.name in new_names]
    if plan.weights == "int4":
        done = _in_four_bits(work, names)
    else:
        ranges = _ranges(nodes, limits) if plan.activations == "int8" else None
        done = _in_eight_bits(work, names, ranges)
    floats = {t.name for t in done.graph.initializer if t.data_type == TensorProto.FLOAT}
    skipped = [n.name for n in done.graph.node if n.name in names and n.input[1] in floats]
    if skipped:
        # The library's quantisers skip what they cannot do, and say so in a log at most.
        raise ExportError(
            "the quantiser left weights in float",
            found=f"{len(skipped)} of {len(nodes)}: {', '.join(skipped[:4])}",
            expected="every projection of the plan in fewer bits",
            remedy="name their groups in keep_float, or choose other weights",
        )
    return without_traces_of_the_build(done)


def _check_types(model: onnx.ModelProto, nodes: list[Projection]) -> None:
    """The library takes other weights than float32 without a word, and leaves or breaks them."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    others = {p.group: types[p.weight] for p in nodes if types[p.weight] != TensorProto.FLOAT}
    if others:
        named = [f"{g} in {TensorProto.DataType.Name(t).lower()}" for g, t in others.items()]
        raise ExportError(
            "a plan quantises weights in float32, and these are in another type",
            found=f"{len(named)} of {len(nodes)}: {', '.join(named[:4])}",
            expected="float32",
            remedy="export the module in float32: module.float(), with inputs and first values in "
            "float32; or name these groups in keep_float",
        )


class _WeightsAlone(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantiser, leaving activations alone."""

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        """Mark nothing."""


def _in_eight_bits(
    work: onnx.ModelProto, names: list[str], ranges: dict[str, TensorData] | None
) -> onnx.ModelProto:
    options = {
        "ActivationSymmetric": True,  # TensorRT takes no other zero point
        "WeightSymmetric": True,
        "QuantizeBias": False,  # TensorRT takes no integer bias
        "OpTypesToExcludeOutputQuantization": list(_KINDS),
    }
    copies: dict[str, str] = {}
    if ranges is not None:
        model = ir.from_proto(work)
        copies = _split_readers(model, names)
        work = ir.to_proto(model)
    quantiser: Any = (_WeightsAlone if ranges is None else QDQQuantizer)(
        work,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range={copy: ranges[name] for copy, name in copies.items()} if ranges else None,
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=list(_KINDS),
        extra_options=options,
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    done: ir.Model = ir.from_proto(quantiser.model.model)
    _join_again(done, copies)
    return ir.to_proto(done)


def _split_readers(model: ir.Model, names: list[str]) -> dict[str, str]:
    """Have the named nodes read copies of their data; original by copy.

    The library quantises a tensor for all who read it, and a gate may be among them.
    """
    copies: dict[str, ir.Value] = {}
    for node in model.graph:
        data = node.inputs[0] if node.name in names else None
        if data is None:
            continue
        if str(data.name) not in copies:
            copy = ir.node("Identity", [data], outputs=[ir.Value(name=f"{data.name}.projected")])
            model.graph.insert_before(node, copy)
            copies[str(data.name)] = copy.outputs[0]
        node.replace_input_with(0, copies[str(data.name)])
    return {str(copy.name): name for name, copy in copies.items()}


def _join_again(model: ir.Model, copies: Mapping[str, str]) -> None:
    """Take the copies out again; only what is quantised still reads them."""
    for node in model.graph:
        if node.outputs[0].name in copies and node.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)


def _in_four_bits(work: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    # The library configures the root logger when this is imported, unless that has a handler.
    guard = logging.NullHandler()
    logging.getLogger().addHandler(guard)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    finally:
        logging.getLogger().removeHandler(guard)
    # Its list of nodes to include adds to a whole operator type, so the others are excluded.
    others = [node.name for node in work.graph.node if node.name not in names]
    quantiser: Any = MatMulNBitsQuantizer(
        work, bits=4, block_size=INT4_BLOCK, is_symmetric=True, nodes_to_exclude=others
    )
    quantiser.process()
    done: onnx.ModelProto = quantiser.model.model
    return done


def _ranges(nodes: list[Projection], limits: Mapping[str, float] | None) -> dict[str, TensorData]:
    names = sorted({p.data for p in nodes})
    if limits is None:
        raise CalibrationError(
            "activations in int8 need ranges, and none were given",
            expected=f"ranges of {len(names)} tensors",
            remedy="stategate export MODEL --out FLOAT; "
            "stategate model ranges FLOAT --episode FILE.npz "
            "--out ranges.json; then --ranges ranges.json",
        )
    missing = [name for name in names if name not in limits]
    if missing:
        raise CalibrationError(
            "the ranges lack tensors that the plan quantises",
            found=f"{len(missing)} missing: {', '.join(missing[:4])}",
            expected="ranges of the same graph",
            remedy="measure again, with the same --operators: stategate model ranges",
        )
    return {
        name: TensorData(
            lowest=np.array(-limits[name], np.float32), highest=np.array(limits[name], np.float32)
        )
        for name in names
    }


class _StoreInHalf(ir.passes.InPlacePass):
    """Store weights in float16, and widen them where they are read.

    Raises:
        ExportError: A weight does not fit float16.
    """

    def __init__(self, weights: set[str]) -> None:
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        first = model.graph[0]
        # In the order of the graph: one of a set would give other bytes in every process.
        for name in [n for n in model.graph.initializers if n in self._weights]:
            wide = model.graph.initializers.pop(name)
            assert wide.const_value is not None
            narrow = wide.const_value.numpy().astype(np.float16)
            if not np.isfinite(narrow).all():
                raise ExportError(
                    "a weight does not fit float16",
                    found=name,
                    expected=f"magnitudes up to {np.finfo(np.float16).max:g}",
                    remedy="name its group in keep_float",
                )
            stored = ir.val(f"{name}.half", const_value=ir.tensor(narrow, name=f"{name}.half"))
            model.graph.register_initializer(stored)
            cast = ir.node(
                "Cast", [stored], {"to": ir.DataType.FLOAT}, outputs=[ir.Value(name=name)]
            )
            wide.replace_all_uses_with(cast.outputs[0])
            model.graph.insert_before(first, cast)
        return ir.passes.PassResult(model, True)
