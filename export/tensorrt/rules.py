"""What TensorRT takes of ONNX, asked before any build: the node, the rule, and the remedy.

Sources: NVIDIA's support matrices and release notes of TensorRT 8.5 to 11.4; of the eleventh
generation every refusal here was seen from its parser too (`make test-tensorrt`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.dataflow import constant_of
from stategate.export.passes.graph import fixed_shape
from stategate.export.tensorrt.generations import RULES, Generation
from stategate.export.tensorrt.rewrite import (
    RESERVED,
    extents_of,
    lower_node,
    read_model,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why TensorRT would not take a graph."""

    where: str  # the node, or the input, output or state
    rule: str  # what is required
    found: str  # what is there
    remedy: str  # what to do

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}; found {self.found}; {self.remedy}"


def findings(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> list[Finding]:
    """Everything in a step that a generation of TensorRT would not take; empty if it is legal."""
    problems = [*_signature(model, spec, generation)]
    # A copy of the check's own, because looking for the form of a node rewrites it.
    graph = read_model(model).graph
    names = [*(v.name for v in model.graph.input), *graph.initializers]
    names += [output.name for node in graph for output in node.outputs]
    for number, node in enumerate(tuple(graph.all_nodes())):
        where = f"node {node.name or number} ({node.op_type})"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _quantisation(node, where)
        problems += _operator(node, where, graph.opset_imports.get("", 0), generation)
    for name in names:
        if name is not None and name.startswith(RESERVED):
            rule = f"no tensor's name begins with {RESERVED}"
            remedy = "give it another name"
            problems.append(Finding(f"tensor {name}", rule, "one that does", remedy))
    return problems


def check_legal(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> None:
    """Refuse a step that a generation of TensorRT would not take."""
    problems = findings(model, spec, generation)
    if problems:
        raise GraphError(
            f"TensorRT {generation.name} would not take the graph",
            found="\n".join(str(one) for one in problems),
            expected="no finding",
            remedy="change the model as each finding says, or use onnxruntime or native",
        )


def _signature(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> Iterator[Finding]:
    for state in spec.states:
        if state.cursor is not None:
            rule, remedy = "a step replaces states as a whole", "export without --defer"
            yield Finding(f"state {state.name}", rule, "rows that are appended", remedy)
        if state.dtype not in ("float32", "int32", "bool"):
            yield Finding(
                f"state {state.name}",
                "states are float32, int32 or bool",
                state.dtype,
                "count in int32" if state.dtype == "int64" else "export without --state-storage",
            )
    for sparse in model.graph.sparse_initializer:
        yield Finding(f"weight {sparse.values.name}", "dense weights", "a sparse one", "widen it")
    initial = {t.name for t in model.graph.initializer}
    allowed = {"float32", "float16", "int32", "bool"} | ({"int64"} if generation.int64 else set())
    sides = {"input": spec.graph_inputs(), "output": spec.graph_outputs()}
    judged = {s.name for s in spec.states} | {s.next_name for s in spec.states}
    judged |= {constant.name for constant in spec.constants}  # part of the graph
    for side, tensors in sides.items():
        for name, tensor in tensors.items():
            if tensor.dtype not in allowed and name not in judged:
                yield Finding(
                    f"{side} {name}",
                    f"types of TensorRT {generation.name}: {', '.join(sorted(allowed))}",
                    tensor.dtype,
                    "cast it in the model, so that the graph has another type at its border",
                )
    for value in model.graph.input:
        if value.name not in initial and fixed_shape(value) is None:
            yield Finding(
                f"input {value.name}",
                "every extent is a number",
                "an open extent",
                "export with fixed shapes",
            )


def _operator(node: ir.Node, where: str, opset: int, generation: Generation) -> Iterator[Finding]:
    operator, reduction = node.op_type, node.attributes.get("reduction")
    refusal = next((one for one in RULES.refusal if one.covers(operator)), None)
    if node.domain:
        int4 = operator == "MatMulNBits"
        yield Finding(
            where,
            "operators of the ONNX standard alone",
            f"domain {node.domain}",
            "export with --precision int8-weights" if int4 else "export with --operators portable",
        )
    elif refusal is not None:
        yield Finding(where, refusal.rule, refusal.found or operator, refusal.remedy)
    elif operator.startswith("Scatter") and reduction and reduction.as_string() != "none":
        yield Finding(
            where,
            "scatter without a reduction",
            f"reduction {reduction.as_string()}",
            "add with a one-hot matrix product",
        )
    else:
        try:
            lower_node(node, opset, generation)
        except GraphError as problem:
            yield Finding(
                where,
                f"operators as of opset {generation.opset}",
                str(problem),
                "export with --operators portable, or write it in simpler operations",
            )


def _quantisation(node: ir.Node, where: str) -> Iterator[Finding]:
    rule = "symmetric int8: constant positive scales, zero points that are int8 and zero"
    remedy = "quantise symmetrically, as --precision int8 does"
    data, scales, zeros = (*node.inputs, None, None)[:3]
    for problem in (*_scale_problems(node, data, scales), *_zero_problems(node, data, zeros)):
        yield Finding(where, rule, problem, remedy)


def _scale_problems(node: ir.Node, data: ir.Value | None, scales: ir.Value | None) -> Iterator[str]:
    scale, extents = constant_of(scales), extents_of(data)
    if scale is None:
        yield "a scale that is computed"
    elif not (scale.astype(np.float64) > 0).all():
        yield "a scale that is not positive"
    elif scale.size > 1 and data is not None and data.shape is not None:
        axis = node.attributes.get_int("axis", 1)
        inside = -len(extents) <= axis < len(extents)
        if scale.ndim != 1 or not inside or extents[axis] not in (0, scale.size):
            yield (
                f"scales {list(scale.shape)} along axis {axis} of {list(extents)}, where one is "
                "needed, or one for each row of an axis"
            )


def _zero_problems(node: ir.Node, data: ir.Value | None, zeros: ir.Value | None) -> Iterator[str]:
    zero, stored = constant_of(zeros), constant_of(data)
    if zeros is None:
        if node.op_type == "QuantizeLinear":
            yield "no zero point, which makes it uint8"  # as ONNX has it
        elif stored is not None and stored.dtype != np.int8:
            yield f"weights of {stored.dtype}"
    elif zero is None:
        yield "a zero point that is computed"
    elif zero.dtype != np.int8:
        yield f"a zero point of {zero.dtype}"
    elif zero.any():
        yield "a zero point that is not zero"
