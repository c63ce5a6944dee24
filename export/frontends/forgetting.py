"""Files whose answers a check could not hold them to: memory begun anew, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from stategate.contract import StepSpec, TensorSpec
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures
from stategate.export.frontends.lifting.find import (
    Question,
    memory_along_time,
    remedy_for,
    remembered,
)
from stategate.export.frontends.lifting.probe import NotTriedError
from stategate.export.frontends.lifting.whole import WholeSequence, gap
from stategate.export.frontends.lifting.work import title
from stategate.export.frontends.padded import padded
from stategate.export.frontends.recurrent import STATES, frames_axis
from stategate.export.passes.dataflow import (
    constant_values,
    extents,
    inferred,
    inner_graphs,
    needed_for,
)
from stategate.export.passes.pinned import pinned

_LENGTHS = (2, 5, 9)  # steps of the calls that are compared
_ALIKE = 1e-4
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
_RANDOM |= {"RandomUniform", "RandomUniformLike"}


def check_nothing_is_forgotten(
    model: onnx.ModelProto, spec: StepSpec, question: Question
) -> tuple[str, ...]:
    """Refuse a graph that answers otherwise when it is called again, or forgets from step to step.

    Returns:
        A sentence for each convolution that runs over a window of time, padded in front.
    """
    model = onnx.inliner.inline_local_functions(model)
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
            found=", ".join(map(title, random)),
            expected="the same answers to the same inputs and states",
            remedy="export the model in evaluation mode with the mean as its action, or hand the "
            "random numbers over as an input",
        )
    constant = constant_values(graph, (constant.name for constant in spec.constants))
    anew = {
        title(node): starts
        for node in nodes
        if (starts := _constant_starts(node, constant)) and _steps(node, graph) == 1
    }
    if anew:
        memory = remembered(model, question)
        raise GraphError(
            "a recurrent node forgets everything after each step",
            found="; ".join(f"{node}, which begins from {starts}" for node, starts in anew.items()),
            expected="its initial state as an input of the graph, and its last one as an output",
            remedy=f"{remedy_for(memory)}; or export them"
            if memory and memory.lifts
            else "export the model with these states as inputs and outputs",
        )
    windows = padded(graph, spec)
    if forgetful := [node for node in windows if node.forgets]:
        memory = remembered(model, question)
        lifts = memory.lifts if memory else ()
        raise GraphError(
            "a window over time forgets everything after each step",
            found="; ".join([*(node.finding for node in forgetful), *map(str, lifts)]),
            expected="the frames of the steps before, as a state",
            remedy=remedy_for(memory)
            if memory and lifts
            else "export the model with these frames as an input, joined to the new one without "
            "padding, and with the last of them as an output; or hand over the whole window",
        )
    return tuple(node.note for node in windows)


def check_calls_add_up(
    model: onnx.ModelProto,
    spec: StepSpec,
    question: Question,
    initial: Mapping[str, np.ndarray],
) -> tuple[str, ...]:
    """Compare a call over several steps with as many calls, where an axis is surely time.

    Returns:
        A sentence where they differ and the file takes a window in each step, whose edge may well
        be the end of its memory; or where the call takes too much to be tried.
    """
    try:
        memory = memory_along_time(model, question)
    except NotTriedError as problem:
        return (f"a call over several steps is not compared with single steps: {problem.amount}",)
    except GraphError:
        return ()
    if memory is None or not {*memory.axes} <= {tensor.name for tensor in spec.inputs}:
        return ()
    results = {n: c for n, c in memory.results.items() if c is None or not (c.lead or c.tail)}
    states = {s.name: initial.get(s.name, np.zeros(s.shape, s.dtype)) for s in spec.states}
    whole = WholeSequence(
        model.SerializeToString(), memory.hop, memory.axes, results, question.constants
    )
    distance = 0.0
    try:
        for steps in _LENGTHS:
            inputs = {tensor.name: _noise(tensor, steps) for tensor in spec.inputs}
            fixed = {n: array[0] for n, array in inputs.items() if n not in memory.axes}
            running = {n: array for n, array in inputs.items() if n in memory.axes}
            together = whole.run(running, {**fixed, **states})
            before = dict(states)
            for t in range(steps):
                piece = {name: array[t : t + 1] for name, array in running.items()}
                answer = whole.run(piece, {**fixed, **before})
                before = {s.name: answer[s.next_name] for s in spec.states if s.next_name in answer}
                for name, value in whole.at(together, t).items():
                    distance = max(distance, gap(answer[name], value))
            for name, course in results.items():
                if course is None:
                    distance = max(distance, gap(answer[name], together[name]))
    except failures():  # it is no file for several steps in one call
        return ()
    if distance <= _ALIKE:
        return ()
    parts = [*memory.lifts, *memory.obstacles]
    names = "; ".join(map(str, parts)) or "no node that could be named"
    if memory.hop == 1 and memory.lifts:
        raise GraphError(
            "the file remembers within one call what it forgets between two",
            found=f"{distance:.3g} apart over {_LENGTHS[-1]} frames; {names}",
            expected="a call over several frames that equals as many calls",
            remedy=remedy_for(memory),
        )
    return (
        f"over several steps in one call the file answers otherwise than step by step "
        f"({distance:.2g} apart): {names}",
    )


def _noise(tensor: TensorSpec, steps: int) -> np.ndarray:
    shape = (steps, *tensor.shape)
    numbers = np.random.default_rng(steps).standard_normal(shape)
    # Zero is an integer that nearly every graph takes.
    return (numbers if tensor.dtype.startswith("float") else np.zeros(shape)).astype(tensor.dtype)


def _constant_starts(node: ir.Node, constant: set[ir.Value]) -> str:
    """What of the initial states of a recurrent node never changes, in words."""
    places = STATES.get(node.op_type, {})
    starts = [node.inputs[i] if i < len(node.inputs) else None for i in places]
    names = [str(v.name) if v else "zeros" for v in starts if v is None or v in constant]
    return " and ".join(dict.fromkeys(names))


def _steps(node: ir.Node, graph: ir.Graph) -> int:
    """Steps of time that a recurrent node takes in one call; 0 where that is not known."""
    value = node.inputs[0]
    # Inside of a branch a node may well begin anew: that branch can be the one of a first step.
    sequence = extents(value) if value is not None and value.graph is graph else None
    return sequence[frames_axis(node, len(sequence))] if sequence else 0


def _drops(node: ir.Node) -> bool:
    """Whether it is a Dropout that may be in training."""
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if training is None:
        return False
    return training.const_value is None or bool(training.const_value.numpy())
