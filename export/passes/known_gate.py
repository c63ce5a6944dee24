"""What is left of a step once its gates are known to be open, or closed: partial evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stategate.contract import StepSpec
from stategate.export.passes.constants import evaluated
from stategate.export.passes.dataflow import extents, is_cheap, values_of
from stategate.export.passes.graph import Writer

# Each element that these take is an element of what they give, and the other way round.
_REORDERING = frozenset({"Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze"})
_REORDERING |= {"Transpose", "Unsqueeze"}
_CHOOSING = _REORDERING - {"Concat"} | {"Gather", "Slice", "Split"}

Array = NDArray[Any]


def can_only_open_whole(spec: StepSpec) -> bool:
    """Whether a step that writes has every gate open everywhere: there is one, of one element."""
    gates = [gate for gate in spec.gates if gate.kind == "hard"]
    return len(gates) == 1 and all(extent == 1 for extent in gates[0].shape)


class AssumeGates(ir.passes.InPlacePass):
    """Take every element of every hard gate for open, or all for closed.

    Requires inferred shapes and no branches. Comparisons of a gate with its threshold become
    constants, and choices between two values become the one that is taken. Guarantees its results
    bit for bit where the assumption holds. Nodes that nothing needs any more are left in.

    Attributes:
        decided: Names of the choices that became one value.
    """

    def __init__(self, spec: StepSpec, *, is_open: bool) -> None:
        self._spec, self._is_open = spec, is_open
        self.decided: set[str] = set()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace choices; the model, and whether one depends on a gate."""
        outcomes = self._comparisons(model.graph)
        for node in list(model.graph):
            result = node.outputs[0]
            condition = outcomes.get(node.inputs[0]) if node.op_type == "Where" else None
            if condition is not None and extents(result) is not None:
                if condition.all() or not condition.any():
                    _take(model.graph, node, node.inputs[1 if condition.all() else 2])
                    self.decided.add(str(result.name))
            elif result not in outcomes:
                value = _follows(node, outcomes, model.opset_imports)
                if value is not None:
                    outcomes[result] = value
        model.graph.sort()
        return ir.passes.PassResult(model, bool(self.decided))

    def _comparisons(self, graph: ir.Graph) -> dict[ir.Value | None, Array]:
        """Every comparison of a hard gate with its threshold, with its outcome."""
        outcomes: dict[ir.Value | None, Array] = {}
        values = values_of(graph)
        for gate in self._spec.gates:
            if gate.kind != "hard" or not gate.threshold_input:
                continue
            elements = _elements_of(graph, values[gate.name])
            thresholds = _chosen_from(graph, {values[gate.threshold_input]})
            for node in graph:
                if node.op_type != "Greater" or node.inputs[0] not in elements:
                    continue
                shape = extents(node.outputs[0])
                if node.inputs[1] in thresholds and shape is not None:
                    outcomes[node.outputs[0]] = np.full(shape, self._is_open)
        return outcomes


def _elements_of(graph: ir.Graph, gate: ir.Value) -> set[ir.Value | None]:
    """Values that hold nothing but elements of a gate: it may be put together of them."""
    elements: set[ir.Value | None] = {gate}
    for node in reversed(graph):
        if node.op_type in _REORDERING and not elements.isdisjoint(node.outputs):
            elements.update(node.inputs if node.op_type == "Concat" else node.inputs[:1])
    return _chosen_from(graph, elements)


def _chosen_from(graph: ir.Graph, elements: set[ir.Value | None]) -> set[ir.Value | None]:
    """These values, and all that hold nothing but elements of one of them."""
    for node in graph:
        if node.op_type in _CHOOSING and node.inputs[0] in elements:
            elements.update(node.outputs)
    return elements


def _follows(node: ir.Node, outcomes: dict[ir.Value | None, Array], opsets: Any) -> Array | None:
    """What follows from known decisions without any rounding; None where nothing does."""
    decisions = [value for value in node.inputs if value in outcomes]
    if not decisions or len(node.outputs) != 1:
        return None
    shape = extents(node.outputs[0])
    if node.op_type == "And" and not all(outcomes[value].any() for value in decisions):
        # Closed whatever the other side says, which need not be known.
        return None if shape is None else np.zeros(shape, np.bool_)
    if not is_cheap(node) and not node.op_type.startswith("Reduce"):
        return None
    feeds = {}
    for value in node.inputs:
        if value is None:
            continue
        if value not in outcomes and value.const_value is None:
            return None
        constant = value.const_value
        feeds[str(value.name)] = outcomes[value] if constant is None else constant.numpy()
    results = evaluated(node, feeds, opsets)
    result = next(iter(results.values())) if results else None
    # Numbers that are no truth values and no integers may be rounded otherwise by an engine.
    return result if result is not None and result.dtype.kind in "bi" else None


def _take(graph: ir.Graph, node: ir.Node, chosen: ir.Value | None) -> None:
    """Let the value that is chosen take the place of a choice, in the shape of the choice."""
    result = node.outputs[0]
    shape = extents(result)
    assert chosen is not None
    assert shape is not None
    write = Writer(graph, f"{result.name}/taken")
    if extents(chosen) == shape:
        value = write("Identity", chosen)
    else:
        value = write("Expand", chosen, write.constant(shape, np.int64))
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], [result], [value])
