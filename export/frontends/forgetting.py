"""Files whose answers a check could not hold them to: memory begun anew, and random numbers."""

from __future__ import annotations

from contextlib import suppress

import onnx
from onnx import numpy_helper

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.dataflow import Dataflow
from stategate.export.passes.graph import every_node
from stategate.export.passes.pinned import pinned

_RECURRENT = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}  # which inputs are the initial states
_RANDOM = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
]


def check_nothing_is_forgotten(model: onnx.ModelProto, spec: StepSpec) -> None:
    """Refuse a graph that answers otherwise when it is called again, or forgets from step to step.

    Raises:
        GraphError: It draws random numbers; or a recurrent node takes one step of time and begins
            it from a constant.
    """
    with suppress(GraphError):  # what cannot be pinned is looked at as it is
        model = pinned(model, spec)
    flow = Dataflow(model)
    needed = flow.needed_for(value.name for value in model.graph.output)
    nodes = [*every_node(onnx.GraphProto(node=[flow.nodes[i] for i in sorted(needed)]))]
    fixed = {"", *flow.fixed(constant.name for constant in spec.constants)}
    random = [node for node in nodes if node.op_type in _RANDOM or _drops(node, model)]
    if random:
        raise GraphError(
            "the graph draws random numbers, which no check can repeat",
            found=", ".join(map(_named, random)),
            expected="the same answers to the same inputs and states",
            remedy="export the model in evaluation mode with the mean as its action, or hand the "
            "random numbers over as an input",
        )
    anew = {
        _named(node): starts
        for node in nodes
        if (starts := _constant_starts(node, fixed)) and _steps(node, flow) == 1
    }
    if anew:
        raise GraphError(
            "a recurrent node forgets everything after each step",
            found="; ".join(f"{node}, which begins from {starts}" for node, starts in anew.items()),
            expected="its initial state as an input of the graph, and its last one as an output",
            remedy="export the model with these states as inputs and outputs",
        )


def _constant_starts(node: onnx.NodeProto, fixed: set[str]) -> str:
    """What of the initial states of a recurrent node never changes, in words."""
    places = _RECURRENT.get(node.op_type, ())
    starts = [node.input[i] if i < len(node.input) else "" for i in places]
    return " and ".join(dict.fromkeys(name or "zeros" for name in starts if name in fixed))


def _steps(node: onnx.NodeProto, flow: Dataflow) -> int:
    """Steps of time that a recurrent node takes in one call; 0 where that is not known."""
    sequence = flow.tensors.get(node.input[0])
    axis = next((a.i for a in node.attribute if a.name == "layout"), 0)
    return sequence.shape[axis] if sequence is not None else 0


def _drops(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether it is a Dropout in training."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    held = {t.name: t for t in model.graph.initializer}.get(node.input[2])
    return held is None or bool(numpy_helper.to_array(held))


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or f'that gives {node.output[0]}'}"
