"""Operators with a memory of their own: where they take it, and where they give the next one."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from stategate.export.passes.dataflow import reads

# Inputs that are initial states, each with the output that is the last one.
STATES: dict[str, dict[int, int]] = {
    "GRU": {5: 1},
    "RNN": {5: 1},
    "LSTM": {5: 1, 6: 2},
    "DynamicQuantizeLSTM": {5: 1, 6: 2},
    "AttnLSTM": {5: 1, 6: 2},
    "LinearAttention": {3: 1},
    "CausalConvWithState": {3: 1},
}
# They lay out numbers anew, or choose among them, and compute none.
_MOVING = "Cast Concat Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze"
_MOVES = frozenset(_MOVING.split())


def frames_axis(node: ir.Node, rank: int) -> int:
    """The axis along which such a node takes one frame after another, of its first input."""
    if node.op_type == "CausalConvWithState":
        return rank - 1
    if node.op_type == "LinearAttention":
        return rank - 2
    return node.attributes.get_int("layout", 0)


def carried_by_nodes(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Outputs that have the last state of the nodes that begin from an input, by that input.

    Only what no operator has changed on the way counts, so no name is needed to tell a state.
    """
    graph = ir.from_proto(model).graph
    carried: dict[str, set[str]] = {}
    for node in graph:
        for before, after in STATES.get(node.op_type, {}).items():
            start = node.inputs[before] if before < len(node.inputs) else None
            if start is None or after >= len(node.outputs):
                continue
            outputs = _outputs_of(graph, node.outputs[after])
            for name in _inputs_of(graph, start):
                carried.setdefault(name, set()).update(outputs)
    return carried


def _inputs_of(graph: ir.Graph, value: ir.Value) -> set[str]:
    names, waiting = set(), [value]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in graph.inputs and not value.is_initializer():
            names.add(str(value.name))
        elif node is not None and node.op_type in _MOVES:
            waiting += reads(node)
    return names


def _outputs_of(graph: ir.Graph, value: ir.Value) -> set[str]:
    names: set[str] = set()
    waiting: list[ir.Value] = [value]
    met: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        if value in met:
            continue
        met.add(value)
        if value.is_graph_output():
            names.add(str(value.name))
        for node in value.consumers():
            if node.op_type in _MOVES and node.graph is graph:
                waiting += node.outputs
    return names
