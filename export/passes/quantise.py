"""A precision plan applied to a step: weights and activations in fewer bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization.onnx_model import ONNXModel

from stategate.contract import StepSpec
from stategate.contract.errors import CalibrationError, ExportError
from stategate.contract.precision import PrecisionPlan
from stategate.export.passes.graph import after_passes, opset_of, without_traces_of_the_build
from stategate.export.passes.projections import IN_FILE, Projection, chosen, projections

INT4_BLOCK = 32
_SCALES_BY_CHANNEL = 13  # first opset whose DequantizeLinear has a scale for each channel


def quantised(
    model: onnx.ModelProto,
    spec: StepSpec,
    plan: PrecisionPlan,
    limits: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """A step in float with its projections in fewer bits, symmetric throughout; states stay.

    ``int4`` weights become ``com.microsoft``'s MatMulNBits, all else standard QuantizeLinear and
    DequantizeLinear, or Cast. Activations in int8 need ``limits``: the symmetric range of each
    tensor, by name.
    """
    if plan.weights == "float32":
        return model
    if plan.weights == "float16":
        names = {p.weight for p in chosen(plan, projections(model, spec))}
        return after_passes(model, _StoreInHalf(names))
    work = onnx.ModelProto()
    work.CopyFrom(model)
    if plan.weights == "int8" and opset_of(work) < _SCALES_BY_CHANNEL:
        work = _with_scales_by_channel(work)
    ONNXModel(work).replace_gemm_with_matmul()  # the one form that every engine has in integers
    names = set()
    for node in work.graph.node:  # a stranger's file may have nodes without names, or namesakes
        node.name = node.output[0] if not node.name or node.name in names else node.name
        names.add(node.name)
    nodes = chosen(plan, projections(work, spec))
    if plan.weights == "int4":
        done = _in_four_bits(work, {p.node for p in nodes})
    else:
        ranges = _ranges(nodes, limits) if plan.activations == "int8" else {}
        done = after_passes(work, _InEightBits(nodes, ranges))
    return without_traces_of_the_build(after_passes(done, RemoveUnusedNodesPass()))


def _with_scales_by_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, _SCALES_BY_CHANNEL)
    except RuntimeError as problem:  # what onnx raises for an operator that it cannot convert
        raise ExportError(
            "the graph is too old for a scale for each channel, and cannot be converted",
            found=f"opset {opset_of(model)}: {' '.join(str(problem).split())}",
            expected=f"opset {_SCALES_BY_CHANNEL} or newer",
            remedy="export the file again with a newer opset, or take float16-weights",
        ) from problem


class _InEightBits(ir.passes.InPlacePass):
    """Store weights in int8, a scale for each channel, and round what they are multiplied with."""

    def __init__(self, projections: list[Projection], ranges: Mapping[str, float]) -> None:
        self._projections, self._ranges = projections, ranges

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = self._graph = model.graph
        nodes = {str(node.name): node for node in graph}
        first = graph[0]
        weights: dict[str, ir.Value] = {}
        data: dict[str, ir.Value] = {}
        for projection in self._projections:
            node, (slot, at) = nodes[projection.node], projection.slots
            wide = node.inputs[slot]
            assert wide is not None
            if projection.weight not in weights:
                weights[projection.weight] = self._stored(wide, projection.axis, first)
            node.replace_input_with(slot, weights[projection.weight])
            limit = self._ranges.get(projection.data) if projection.in_integers else None
            if limit is None:
                continue
            if projection.data not in data:
                # Only what is quantised reads the rounded copy: a gate may read the tensor, too.
                exact = node.inputs[at]
                assert exact is not None
                scale, zero = self._constants(projection.data, np.array(limit / 127, np.float32))
                rounded = self._node("QuantizeLinear", [exact, scale, zero], node)
                data[projection.data] = self._node("DequantizeLinear", [rounded, scale, zero], node)
            node.replace_input_with(at, data[projection.data])
        return ir.passes.PassResult(model, True)

    def _stored(self, weight: ir.Value, axis: int, before: ir.Node) -> ir.Value:
        """The weight as it is read again, in its own type."""
        name = str(weight.name)
        assert weight.const_value is not None
        wide = weight.const_value.numpy().astype(np.float64)
        others = tuple(i for i in range(wide.ndim) if i != axis)
        with np.errstate(over="ignore"):
            largest = np.abs(wide).max(axis=others, initial=0.0).astype(np.float32)
        if not np.isfinite(largest).all():
            raise ExportError(
                "a weight has NaN or infinity, or is beyond float32",
                found=name,
                expected="finite numbers",
                remedy=f"name its group in keep_float, or mend {name}",
            )
        # A channel of zeros may have any scale but zero.
        scales = np.where(largest > 0, np.maximum(largest / 127, np.finfo(np.float32).tiny), 1)
        shape = [-1 if i == axis else 1 for i in range(wide.ndim)]
        steps = np.rint(wide / scales.reshape(shape)).clip(-127, 127).astype(np.int8)
        scale, zero = self._constants(name, scales.astype(np.float32))
        stored = self._constant(f"{name}_quantized", steps)
        value = self._node("DequantizeLinear", [stored, scale, zero], before, axis=axis)
        if weight.dtype in (None, ir.DataType.FLOAT):
            return value
        return self._node("Cast", [value], before, to=weight.dtype)

    def _constants(self, name: str, scales: np.ndarray) -> tuple[ir.Value, ir.Value]:
        zeros = np.zeros(scales.shape, np.int8)  # TensorRT takes no other zero point
        scale = self._constant(f"{name}_scale", scales)
        return scale, self._constant(f"{name}_zero_point", zeros)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        while name in self._graph.initializers:
            name += "."
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value

    def _node(
        self, operator: str, inputs: list[ir.Value], before: ir.Node, **attributes: Any
    ) -> ir.Value:
        """The result of a new node, called after what it is made of."""
        name = f"{inputs[0].name}.{operator}"
        node = ir.node(operator, inputs, attributes, name=name, outputs=[ir.Value(name=name)])
        self._graph.insert_before(before, node)
        return node.outputs[0]


def _in_four_bits(work: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
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


def _ranges(nodes: list[Projection], limits: Mapping[str, float] | None) -> dict[str, float]:
    """The range of every tensor that is multiplied as integers."""
    names = sorted({p.data for p in nodes if p.in_integers})
    if limits is None:
        raise CalibrationError(
            "activations in int8 need ranges, and none were given",
            expected=f"ranges of {len(names)} tensors",
            remedy="make the bundle without --precision in FLOAT; stategate model ranges FLOAT "
            "--episode FILE.npz --out ranges.json; then --ranges ranges.json",
        )
    # A pool has the ranges of one session, whose graph takes its tensors as the file does.
    limits = {**limits} | {f"{name}{IN_FILE}": limit for name, limit in limits.items()}
    missing = [name for name in names if name not in limits]
    if missing:
        raise CalibrationError(
            "the ranges lack tensors that the plan quantises",
            found=f"{len(missing)} missing: {', '.join(missing[:4])}",
            expected="ranges of the same graph",
            remedy="measure again, with the same --operators: stategate model ranges",
        )
    return {name: limits[name] for name in names}


class _StoreInHalf(ir.passes.InPlacePass):
    """Store weights in float16, and widen them where they are read."""

    def __init__(self, weights: set[str]) -> None:
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        first = model.graph[0]
        # In the order of the graph: one of a set would give other bytes in every process.
        for name in [n for n in model.graph.initializers if n in self._weights]:
            wide = model.graph.initializers[name]
            assert wide.const_value is not None
            if wide.const_value.dtype == ir.DataType.FLOAT16:
                continue
            model.graph.initializers.pop(name)
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
            cast = ir.node("Cast", [stored], {"to": wide.dtype}, outputs=[ir.Value(name=name)])
            wide.replace_all_uses_with(cast.outputs[0])
            model.graph.insert_before(first, cast)
        return ir.passes.PassResult(model, True)
