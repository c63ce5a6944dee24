"""Files whose answers a check could not hold them to: memory begun anew, and random numbers."""

from __future__ import annotations

from contextlib import suppress

import onnx
import onnx_ir as ir

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.dataflow import (
    constant_values,
    extents,
    inferred,
    inner_graphs,
    needed_for,
)
from stategate.export.passes.pinned import pinned

_RECURRENT = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}  # which inputs are the initial states
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
_RANDOM |= {"RandomUniform", "RandomUniformLike"}


def check_nothing_is_forgotten(model: onnx.ModelProto, spec: StepSpec) -> None:
    """Refuse a graph that answers otherwise when it is called again, or forgets from step to step.

    Raises:
        GraphError: It draws random numbers; or a recurrent node takes one step of time and begins
            it from a constant.
    """
    with suppress(GraphError):  # what cannot be pinned is looked at as it is
        model = pinned(model, spec)
    graph = inferred(model).graph
    needed = needed_for(graph.outputs)
    nodes = []
    for node in graph:
        if node in needed:
            nodes.append(node)
            for inner in inner_graphs(node):
                nodes += ir.traversal.RecursiveGraphIterator(inner)
    random = [node for node in nodes if node.op_type in _RANDOM or _drops(node)]
    if random:
        raise GraphError(
            "the graph draws random numbers, which no check can repeat",
            found=", ".join(map(_title, random)),
            expected="the same answers to the same inputs and states",
            remedy="export the model in evaluation mode with the mean as its action, or hand the "
            "random numbers over as an input",
        )
    constant = constant_values(graph, (constant.name for constant in spec.constants))
    anew = {
        _title(node): starts
        for node in nodes
        if (starts := _constant_starts(node, constant)) and _steps(node, graph) == 1
    }
    if anew:
        raise GraphError(
            "a recurrent node forgets everything after each step",
            found="; ".join(f"{node}, which begins from {starts}" for node, starts in anew.items()),
            expected="its initial state as an input of the graph, and its last one as an output",
            remedy="export the model with these states as inputs and outputs",
        )


def _constant_starts(node: ir.Node, constant: set[ir.Value]) -> str:
    """What of the initial states of a recurrent node never changes, in words."""
    places = _RECURRENT.get(node.op_type, ())
    starts = [node.inputs[i] if i < len(node.inputs) else None for i in places]
    names = [str(v.name) if v else "zeros" for v in starts if v is None or v in constant]
    return " and ".join(dict.fromkeys(names))


def _steps(node: ir.Node, graph: ir.Graph) -> int:
    """Steps of time that a recurrent node takes in one call; 0 where that is not known."""
    value = node.inputs[0]
    # Inside of a branch a node may well begin anew: that branch can be the one of a first step.
    sequence = extents(value) if value is not None and value.graph is graph else None
    return sequence[node.attributes.get_int("layout", 0)] if sequence else 0


def _drops(node: ir.Node) -> bool:
    """Whether it is a Dropout that may be in training."""
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if training is None:
        return False
    return training.const_value is None or bool(training.const_value.numpy())


def _title(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or f'that gives {node.outputs[0].name}'}"
