"""The copy of a step that C and TensorRT get: axes pinned, constants computed, branches decided.

The step's own graph stays as it is, which ONNX Runtime folds by itself when it loads it. Of an
adopted file the manifest holds the sizes of axes and the values of constant inputs; here they
become part of the graph. Whatever depends on constants alone is then computed once, and of a
branch whose condition is known the one that is taken replaces both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures
from stategate.export.passes.graph import every_node, fixed_shape

Array = NDArray[Any]

# What gives another result each time, and what keeps weights in fewer bits until they are read.
_KEPT = {"Bernoulli", "DequantizeLinear", "Dropout", "Multinomial", "QuantizeLinear"}
_KEPT |= {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")}
_MAY_GROW = 64 * 1024  # bytes by which a result may be larger than the constants it is made of
_MAY_WIDEN = 256  # the same of a Cast: weights in fewer bits stay in fewer bits


def pinned(model: onnx.ModelProto, spec: StepSpec) -> onnx.ModelProto:
    """A step with the shapes and constants of its signature, and nothing left to fold.

    Args:
        model: The step; left as it is.
        spec: Its signature. Thresholds stay inputs, because a session changes them.

    Returns:
        The same step, with shapes inferred. Constant inputs are no inputs of it any more.

    Raises:
        GraphError: Its shapes contradict each other.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    _pin(work.graph, spec)
    names = count()
    while True:
        del work.graph.value_info[:]  # may speak of axes that were open
        try:
            work = onnx.shape_inference.infer_shapes(work, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as problem:
            raise GraphError("the graph has no fixed shapes", found=str(problem)) from problem
        known = _fold(work)
        if not _decide(work.graph, known, names):
            break
    _name_outputs(work.graph)
    _drop_unused(work.graph)
    return work


def _pin(graph: onnx.GraphProto, spec: StepSpec) -> None:
    constants = {constant.name: constant for constant in spec.constants}
    shapes = {**spec.graph_inputs(), **spec.graph_outputs()}
    for value in (*graph.input, *graph.output):
        if value.name in shapes:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=n) for n in shapes[value.name].shape]
            value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    for one in constants.values():
        array = np.full(one.shape, one.value, one.dtype)
        graph.initializer.append(numpy_helper.from_array(array, one.name))
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    _replace(graph, "input", inputs)


def _replace(graph: onnx.GraphProto, field: str, values: list[Any]) -> None:
    kept = onnx.GraphProto()
    getattr(kept, field).extend(values)
    graph.ClearField(field)
    getattr(graph, field).extend(getattr(kept, field))


def _fold(model: onnx.ModelProto) -> dict[str, Array]:
    """Compute what depends on constants alone; every constant by its name."""
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {
        value.name: fixed_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {name: array.shape for name, array in known.items()}
    left = []
    for node in graph.node:
        found = _computed(node, model, known, shapes)
        if found is None:
            left.append(node)
            continue
        known |= found
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in found.items())
    _replace(graph, "node", left)
    return known


def _computed(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    known: dict[str, Array],
    shapes: dict[str, tuple[int, ...] | None],
) -> dict[str, Array] | None:
    """What a node gives, by name; None where that depends on more than constants."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEPT:
        return None
    if node.op_type in ("Shape", "Size"):
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        extents = part if node.op_type == "Shape" else prod(shape)
        return {node.output[0]: np.array(extents, np.int64)}
    if any(attribute.HasField("g") for attribute in node.attribute):
        return None
    if not all(name in known or not name for name in node.input):
        return None
    feeds = {name: known[name] for name in node.input if name}
    try:
        results = _evaluated(node, model, feeds)
    except failures():  # the reference raises what numpy raises; the node stays where it is
        return None
    arrays = {n: a for n, a in zip(_given(node), results, strict=True) if isinstance(a, np.ndarray)}
    if len(arrays) < len(results) or any(a.dtype.kind not in "fiub" for a in arrays.values()):
        return None
    allowed = _MAY_WIDEN if node.op_type == "Cast" else _MAY_GROW
    growth = sum(a.nbytes for a in arrays.values()) - sum(a.nbytes for a in feeds.values())
    return None if growth > allowed else arrays


def _given(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.output if name]


def _evaluated(node: onnx.NodeProto, model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Any]:
    """The results of one node by the reference of ONNX, as its opset means it."""
    held = [numpy_helper.from_array(array, name) for name, array in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in _given(node)]
    alone = helper.make_model(
        helper.make_graph([node], "constant", [], outputs, held),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    return list(ReferenceEvaluator(alone).run(None, {}))


def _decide(graph: onnx.GraphProto, known: dict[str, Array], names: Iterator[int]) -> bool:
    """Put the branch that is taken in the place of each If that is decided; whether one was."""
    nodes: list[onnx.NodeProto] = []
    decided = False
    for node in graph.node:
        if node.op_type != "If" or node.input[0] not in known:
            nodes.append(node)
            continue
        decided = True
        side = "then_branch" if known[node.input[0]].all() else "else_branch"
        branch = onnx.GraphProto()
        branch.CopyFrom(next(a.g for a in node.attribute if a.name == side))
        own = {name for one in branch.node for name in _given(one)}
        own |= {tensor.name for tensor in branch.initializer}
        # Both branches, and those of other nodes, may use the same names.
        suffix = f" in branch {next(names)}"
        _rename(branch, {name: f"{name}{suffix}" for name in own})
        graph.initializer.extend(branch.initializer)
        nodes += branch.node
        for value, output in zip(branch.output, node.output, strict=True):
            if output:
                nodes.append(helper.make_node("Identity", [value.name], [output]))
    _replace(graph, "node", nodes)
    return decided


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give tensors of a graph other names, also where graphs within it read them."""
    for tensor in (*graph.initializer, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _name_outputs(graph: onnx.GraphProto) -> None:
    """Let a node give each output: one that is a constant itself would be filled by nobody."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.output:
        if value.name in held:
            constant = f"{value.name} as a constant"
            copy = onnx.TensorProto()
            copy.CopyFrom(held[value.name])
            copy.name = constant
            graph.initializer.append(copy)
            for node in graph.node:
                node.input[:] = [constant if n == value.name else n for n in node.input]
            graph.initializer.remove(held[value.name])
            graph.node.append(helper.make_node("Identity", [constant], [value.name]))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            within = every_node(onnx.GraphProto(node=[node]))
            needed |= {name for one in within for name in one.input}
    _replace(graph, "node", kept[::-1])
    _replace(graph, "initializer", [t for t in graph.initializer if t.name in needed])
