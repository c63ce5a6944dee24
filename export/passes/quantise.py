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
from onnx import TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from stategate.contract import StepSpec
from stategate.contract.errors import CalibrationError, ExportError, SpecError
from stategate.contract.precision import GATES, RECURRENCE, PrecisionPlan
from stategate.export.passes.graph import without_traces_of_the_build

INT4_BLOCK = 32
_KINDS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True, slots=True)
class Projection:
    """A node that a plan may quantise.

    Attributes:
        group: Its name in plans: that of its weight.
        node: Its name in the graph.
        data: The tensor that it projects.
        weight: The initialiser that it projects with.
        role: ``gates``, ``recurrence``, or empty.
        elements: Size of its weight.
    """

    group: str
    node: str
    data: str
    weight: str
    role: str
    elements: int


def projections(model: onnx.ModelProto, spec: StepSpec) -> list[Projection]:
    """Every node of a step that may be quantised, in the graph's order."""
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    nodes = {
        node.name: node
        for node in model.graph.node
        if node.op_type in _KINDS and node.input[1] in sizes and node.input[0] not in sizes
    }
    graph = _Ways(model.graph, set(nodes), {gate.name for gate in spec.gates})
    gates = graph.behind([gate.name for gate in spec.gates], through_projections=False)
    useful = graph.behind(
        [t.name for t in spec.outputs] + [s.next_name for s in spec.states],
        through_projections=True,
    )
    recurrent: set[str] = set()
    for state in spec.states:
        feeds = graph.behind([state.next_name], through_projections=True)
        recurrent |= {name for name in graph.ahead(state.name) if name in feeds}
    found = []
    for name, node in nodes.items():
        group = node.input[1].removeprefix("model.").removesuffix(".weight") or name
        role = GATES if name in gates or name not in useful else ""
        role = role or (RECURRENCE if name in recurrent else "")
        found.append(
            Projection(group, name, node.input[0], node.input[1], role, sizes[node.input[1]])
        )
    return found


class _Ways:
    """Which node is behind which tensor."""

    def __init__(self, graph: onnx.GraphProto, projections: set[str], gates: set[str]) -> None:
        self._graph = graph
        self._projections = projections
        self._gates = gates
        self._maker = {name: node for node in graph.node for name in node.output if name}

    def behind(self, tensors: Iterable[str], *, through_projections: bool) -> set[str]:
        """Names of the projections that the tensors are computed from.

        Args:
            tensors: Where to begin.
            through_projections: Whether to look behind a projection for others.
        """
        found: set[str] = set()
        begin = list(tensors)
        seen = set(begin)
        waiting = begin
        while waiting:
            node = self._maker.get(waiting.pop())
            if node is None:
                continue
            if node.name in self._projections:
                found.add(node.name)
                if not through_projections:
                    continue
            # A gate decides, it does not feed: its own way is not that of what it decides on.
            fresh = {n for n in node.input if n not in seen and n not in self._gates}
            seen |= fresh
            waiting += sorted(fresh)
        return found

    def ahead(self, tensor: str) -> set[str]:
        """Names of the projections that a tensor reaches without passing another."""
        found: set[str] = set()
        reached = {tensor}
        for node in self._graph.node:  # ONNX keeps nodes in an order in which they can run
            if not reached.isdisjoint(node.input):
                if node.name in self._projections:
                    found.add(node.name)
                else:
                    reached |= set(node.output) - self._gates
        return found


def chosen(plan: PrecisionPlan, every: list[Projection]) -> list[Projection]:
    """The projections that a plan quantises.

    Raises:
        SpecError: ``keep_float`` names something that the model does not have.
        ExportError: None is left.
    """
    kept: set[str] = set()
    for wanted in plan.keep_float:
        named = {p.node for p in every if wanted == p.role or fnmatchcase(p.group, wanted)}
        if not named and wanted not in (GATES, RECURRENCE):
            raise SpecError(
                "keep_float names a group that the model does not have",
                found=wanted,
                expected=", ".join(sorted(p.group for p in every)) or "nothing: no projections",
            )
        kept |= named
    tied = {p.weight for p in every if p.node in kept}  # a weight has one form for all who read it
    left = [p for p in every if p.weight not in tied]
    if not left:
        raise ExportError(
            "the plan quantises nothing",
            found=f"{len(every)} projections, {len(every) - len(left)} of them kept in float",
            expected="at least one MatMul, Gemm or Conv whose weight is an initialiser",
            remedy="take names out of keep_float, or export in float32",
        )
    return left


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants of a graph, scales among them."""
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


def quantised(
    model: onnx.ModelProto,
    spec: StepSpec,
    plan: PrecisionPlan,
    limits: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """A step with its projections in fewer bits.

    Args:
        model: A float32 step.
        spec: Its signature.
        plan: What to do; its weights and activations, not its states.
        limits: Symmetric range of each tensor, by name; for activations in int8.

    Returns:
        Opset as before, symmetric throughout. ``int4`` weights become ``com.microsoft``'s
        MatMulNBits, all else standard QuantizeLinear and DequantizeLinear, or Cast.

    Raises:
        SpecError: The plan names groups that the model lacks.
        CalibrationError: A range is missing.
        ExportError: Nothing is left to quantise, or the quantiser left something undone.
    """
    if plan.weights == "float32":
        return model
    nodes = chosen(plan, projections(model, spec))
    _check_types(model, nodes)
    work = onnx.ModelProto()
    work.CopyFrom(model)
    if plan.weights == "float16":
        _halve(work, {p.weight for p in nodes})
        return work
    ONNXModel(work).replace_gemm_with_matmul()  # the one form that every quantiser here takes
    wanted = {p.node for p in nodes} | {f"{p.node}_MatMul" for p in nodes}
    names = [node.name for node in work.graph.node if node.name in wanted]
    if plan.weights == "int4":
        done = _in_four_bits(work, names)
    else:
        ranges = _ranges(nodes, limits) if plan.activations == "int8" else None
        done = _in_eight_bits(work, names, ranges)
    floats = {t.name for t in done.graph.initializer if t.data_type == TensorProto.FLOAT}
    left = [n.name for n in done.graph.node if n.name in names and n.input[1] in floats]
    if left:
        # The library's quantisers skip what they cannot do, and say so in a log at most.
        raise ExportError(
            "the quantiser left weights in float",
            found=f"{len(left)} of {len(nodes)}: {', '.join(left[:4])}",
            expected="every projection of the plan in fewer bits",
            remedy="name their groups in keep_float, or choose other weights",
        )
    return without_traces_of_the_build(done)


def _check_types(model: onnx.ModelProto, nodes: list[Projection]) -> None:
    """The library takes other weights than float32 without a word, and leaves or breaks them."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    strange = {p.group: types[p.weight] for p in nodes if types[p.weight] != TensorProto.FLOAT}
    if strange:
        named = [f"{g} in {TensorProto.DataType.Name(t).lower()}" for g, t in strange.items()]
        raise ExportError(
            "a plan quantises weights in float32, and these are in another type",
            found=f"{len(named)} of {len(nodes)}: {', '.join(named[:4])}",
            expected="float32",
            remedy="export the module in float32: module.float(), with inputs and first values in "
            "float32; or name these groups in keep_float",
        )


class _WeightsAlone(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantiser, told to leave activations alone."""

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
    aliases = _set_apart(work, names) if ranges is not None else {}
    quantiser: Any = (_WeightsAlone if ranges is None else QDQQuantizer)(
        work,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range={alias: ranges[name] for alias, name in aliases.items()} if ranges else None,
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=list(_KINDS),
        extra_options=options,
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    done: onnx.ModelProto = quantiser.model.model
    _join_again(done, aliases)
    return done


def _set_apart(work: onnx.ModelProto, names: list[str]) -> dict[str, str]:
    """Have the named nodes read copies of their data: original by copy.

    The library quantises a tensor for all who read it, and a gate may be among them.
    """
    copies: dict[str, str] = {}
    nodes = []
    for node in work.graph.node:
        if node.name in names:
            data = node.input[0]
            copy = f"{data}.projected"
            if copy not in copies:
                copies[copy] = data
                nodes.append(onnx.helper.make_node("Identity", [data], [copy]))
            node.input[0] = copy
        nodes.append(node)
    _replace_nodes(work, nodes)
    return copies


def _join_again(done: onnx.ModelProto, copies: Mapping[str, str]) -> None:
    """Take the copies out again; only what is quantised still reads them."""
    nodes = [node for node in done.graph.node if node.output[0] not in copies]
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            node.input[0] = copies.get(node.input[0], node.input[0])
    _replace_nodes(done, nodes)


def _replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = onnx.GraphProto(node=nodes).node  # copies: what is cleared would take its nodes along
    model.graph.ClearField("node")
    model.graph.node.extend(kept)


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
    wanted = sorted({p.data for p in nodes})
    if limits is None:
        raise CalibrationError(
            "activations in int8 need ranges, and none were given",
            expected=f"ranges of {len(wanted)} tensors",
            remedy="stategate export MODEL --out FLOAT; stategate ranges FLOAT --episode FILE.npz "
            "--out ranges.json; then --ranges ranges.json",
        )
    missing = [name for name in wanted if name not in limits]
    if missing:
        raise CalibrationError(
            "the ranges lack tensors that the plan quantises",
            found=f"{len(missing)} missing: {', '.join(missing[:4])}",
            expected="ranges of the same graph",
            remedy="measure again, with the same --operators: stategate ranges",
        )
    return {
        name: TensorData(
            lowest=np.array(-limits[name], np.float32), highest=np.array(limits[name], np.float32)
        )
        for name in wanted
    }


def _halve(work: onnx.ModelProto, weights: set[str]) -> None:
    """Store weights in float16 and widen them where they are read."""
    casts = []
    for tensor in work.graph.initializer:
        if tensor.name not in weights:
            continue
        narrow = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(narrow).all():
            raise ExportError(
                "a weight does not fit float16",
                found=tensor.name,
                expected=f"magnitudes up to {np.finfo(np.float16).max:g}",
                remedy="name its group in keep_float",
            )
        wide, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [wide], to=TensorProto.FLOAT))
    _replace_nodes(work, [*casts, *work.graph.node])
