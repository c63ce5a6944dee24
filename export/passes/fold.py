"""What is left of a step once its gate is known to be open, or closed: partial evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from stategate.contract import GateSpec, StepSpec
from stategate.export.passes.dataflow import Dataflow

# Each element that these take is an element of what they give, and the other way round.
_REORDERING = frozenset({"Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze"})
_REORDERING |= {"Transpose", "Unsqueeze"}
_CHOOSING = _REORDERING - {"Concat"} | {"Gather", "Slice", "Split"}


def can_only_open_whole(spec: StepSpec) -> bool:
    """Whether a step that writes has every gate open everywhere: there is one, of one element."""
    gates = [gate for gate in spec.gates if gate.kind == "hard"]
    return len(gates) == 1 and all(extent == 1 for extent in gates[0].shape)


def given_gate(model: onnx.ModelProto, spec: StepSpec, is_open: bool) -> onnx.ModelProto | None:
    """The step, given that every element of every hard gate is open, or that all are closed.

    Comparisons of a gate with its threshold become constants, choices between two tensors become
    the one that is taken, bit for bit. Nodes that nothing needs any more are left in.

    Args:
        model: The step.
        spec: Its signature.
        is_open: What is known.

    Returns:
        The rest, or None where no choice depends on the gate.
    """
    flow = Dataflow(model)
    known = _decisions(flow, spec, is_open)
    rest = onnx.ModelProto()
    rest.CopyFrom(flow.model)
    del rest.graph.node[:]
    chosen = 0
    for i, node in enumerate(flow.nodes):
        if node.op_type == "Where" and node.input[0] in known and node.output[0] in flow.tensors:
            condition = known[node.input[0]]
            if condition.all() or not condition.any():
                taken = node.input[1 if condition.all() else 2]
                rest.graph.node.extend(_take(flow, rest, taken, node.output[0]))
                chosen += 1
                continue
        elif node.output[0] not in known:
            value = _evaluated(flow, i, known)
            if value is not None:
                known[node.output[0]] = value
        rest.graph.node.append(node)
    return rest if chosen else None


def _decisions(flow: Dataflow, spec: StepSpec, is_open: bool) -> dict[str, np.ndarray]:
    """Every comparison of a hard gate with its threshold, with its outcome."""
    known = {}
    for gate in spec.gates:
        if gate.kind != "hard" or gate.threshold_input is None:
            continue
        values, thresholds = _elements_of(flow, gate), {gate.threshold_input}
        for node in flow.nodes:
            if node.op_type in _CHOOSING and node.input[0] in thresholds:
                thresholds.update(node.output)
        for node in flow.nodes:
            if node.op_type == "Greater" and node.output[0] in flow.tensors:
                value, threshold = node.input
                if value in values and threshold in thresholds:
                    shape = flow.tensors[node.output[0]].shape
                    known[node.output[0]] = np.full(shape, is_open)
    return known


def _elements_of(flow: Dataflow, gate: GateSpec) -> set[str]:
    """Tensors that hold nothing but elements of a gate."""
    found = {gate.name}
    for node in reversed(flow.nodes):
        if node.op_type in _REORDERING and found & set(node.output):
            found.update(node.input if node.op_type == "Concat" else node.input[:1])
    for node in flow.nodes:
        if node.op_type in _CHOOSING and node.input[0] in found:
            found.update(node.output)
    return found


def _evaluated(flow: Dataflow, i: int, known: dict[str, np.ndarray]) -> np.ndarray | None:
    """What follows from known decisions without any rounding; None where nothing does."""
    node = flow.nodes[i]
    if not known.keys() & set(node.input) or len(node.output) != 1:
        return None
    if node.op_type == "And" and any(n in known and not known[n].any() for n in node.input):
        if node.output[0] in flow.tensors:
            return np.zeros(flow.tensors[node.output[0]].shape, np.bool_)
        return None
    initial = {t.name: t for t in flow.model.graph.initializer}
    if not flow.cheap(i) and not node.op_type.startswith("Reduce"):
        return None
    if not all(n in known or n in initial or not n for n in node.input):
        return None
    feeds = {n: known[n] for n in node.input if n in known}
    feeds |= {n: onnx.numpy_helper.to_array(initial[n]) for n in node.input if n in initial}
    results: Any = ReferenceEvaluator(node).run(None, feeds)
    value = np.asarray(results[0])
    return value if value.dtype.kind in "bi" else None


def _take(flow: Dataflow, rest: onnx.ModelProto, taken: str, output: str) -> list[onnx.NodeProto]:
    initial = {t.name: tuple(t.dims) for t in flow.model.graph.initializer}
    shape = flow.tensors[taken].shape if taken in flow.tensors else initial.get(taken)
    wanted = flow.tensors[output].shape
    if wanted == shape:
        return [onnx.helper.make_node("Identity", [taken], [output])]
    wide, extents = f"{output}.shape", np.array(wanted, dtype=np.int64)
    rest.graph.initializer.append(onnx.numpy_helper.from_array(extents, wide))
    return [onnx.helper.make_node("Expand", [taken, wide], [output])]
