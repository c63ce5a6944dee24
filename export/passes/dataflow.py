"""What depends on what in a graph: sizes of values, what a node costs, parts of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from stategate.contract import TensorSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import SpecError
from stategate.export.passes.graph import replace_all

_MOVING = "Cast Concat Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze"
_ELEMENTWISE = """Abs Add And Ceil Clip Constant ConstantOfShape Div Equal Exp Expand Floor Gather
Greater GreaterOrEqual Less LessOrEqual Log Max Min Mul Neg Not Or Pow Reciprocal Relu Sigmoid Sign
Softplus Split Sqrt Sub Tanh Where Xor"""
_MOVES = frozenset(_MOVING.split())
# Operators whose work is in proportion to what they give: computing one twice costs little.
_CHEAP = _MOVES.union(_ELEMENTWISE.split())


def inferred(model: onnx.ModelProto) -> ir.Model:
    """The model with every shape that follows from those of its inputs."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def values_of(graph: ir.Graph) -> Mapping[str, ir.Value]:
    """Every input, constant and result of a graph by name, without those inside of branches."""
    return ir.convenience.create_value_mapping(graph, include_subgraphs=False)


def inner_graphs(node: ir.Node) -> list[ir.Graph]:
    """Branches and loop bodies of a node."""
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return graphs


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node takes from its graph, from inside its branches too, each once."""
    inner = [n for g in inner_graphs(node) for n in ir.traversal.RecursiveGraphIterator(g)]
    values = [value for each in (node, *inner) for value in each.inputs if value is not None]
    return [value for value in dict.fromkeys(values) if value.graph is node.graph]


def needed_for(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Every node that some values depend on."""
    nodes: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += reads(node)
    return nodes


def constant_values(graph: ir.Graph, constants: Iterable[str]) -> set[ir.Value]:
    """Values that depend on initialisers and on some other constants alone, these included."""
    values = values_of(graph)
    constant = {*graph.initializers.values(), *(values[n] for n in constants if n in values)}
    for node in graph:
        if constant.issuperset(reads(node)):
            constant.update(node.outputs)
    return constant


def tensor_of(value: ir.Value | None) -> TensorSpec | None:
    """Name, shape and dtype of a value; None where one of them is not known."""
    shape = extents(value)
    if value is None or shape is None or value.dtype is None:
        return None
    try:
        return TensorSpec(str(value.name), shape, dtype_from_onnx(int(value.dtype)).name)
    except SpecError:  # a type that no state and no output has
        return None


def extents(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of a value; None where an extent or the rank is open."""
    if value is None or value.shape is None:
        return None
    fixed = tuple(e for e in value.shape if isinstance(e, int) and e > 0)
    return fixed if len(fixed) == len(value.shape) else None


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The elements of a constant, or None for what is computed or left out."""
    try:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
    except ValueError:  # a sparse constant, or one with several attributes
        return None
    return None if tensor is None else tensor.numpy()


def integers_of(node: ir.Node, at: int) -> list[int] | None:
    """The integers of a constant input; None where it is missing or computed."""
    array = constant_of(node.inputs[at]) if len(node.inputs) > at else None
    return None if array is None else [int(number) for number in array.reshape(-1)]


def pads_of(
    node: ir.Node, extents: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Padding of a convolution or pool in front of each axis, and then behind each.

    Extents are those of what it reads, without batch and channels; a window reaches over so many
    places from the first to the last.
    """
    nothing = [0] * 2 * len(extents)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        return list(node.attributes.get_ints("pads", nothing)) if automatic == "NOTSET" else nothing
    total = [
        max(0, (-(-n // s) - 1) * s + r - n)
        for n, r, s in zip(extents, reach, strides, strict=True)
    ]
    less = [count // 2 for count in total]
    more = [count - half for count, half in zip(total, less, strict=True)]
    return [*less, *more] if automatic == "SAME_UPPER" else [*more, *less]


def is_cheap(node: ir.Node) -> bool:
    """Whether a node may well be computed twice."""
    return not node.domain and node.op_type in _CHEAP


def work_of(nodes: Iterable[ir.Node]) -> int:
    """Elements that nodes give, times the depth of what they multiply where they do."""
    total = 0
    for node in nodes:
        depth = 1
        if node.op_type in ("MatMul", "Gemm"):
            transposed = node.attributes.get_int("transA", 0)
            shape = extents(node.inputs[0])
            depth = shape[-2 if transposed else -1] if shape else 1
        # A value of unknown size counts as one element.
        total += depth * sum(math.prod(extents(v) or ()) for v in node.outputs)
    return total


def part(model: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> onnx.ModelProto:
    """A graph of its own from some values to others, without the inputs that it does not need."""
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    replace_all(graph.inputs, [value for value in graph.inputs if value.uses()])
    # onnx-ir gathers constants in a set, in another order in each process: the bytes would differ.
    constants = [
        graph.initializers.pop(n) for n in model.graph.initializers if n in graph.initializers
    ]
    for value in constants:
        graph.register_initializer(value)
    taken_out = ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=list(model.functions.values()),
    )
    serialised = ir.to_proto(taken_out)
    onnx.checker.check_model(serialised)
    return serialised


def used_inputs(model: onnx.ModelProto) -> set[str]:
    """Inputs of a graph that some output of it depends on."""
    graph = ir.from_proto(model).graph
    return {str(value.name) for node in needed_for(graph.outputs) for value in reads(node)}


def copies_of_inputs(model: onnx.ModelProto) -> set[str]:
    """Outputs of a graph that are an input of it, unchanged."""
    graph = ir.from_proto(model).graph
    names = set()
    for value in graph.outputs:
        source: ir.Value | None = value
        while source is not None and (node := source.producer()) and node.op_type == "Identity":
            source = node.inputs[0]
        if source in graph.inputs:
            names.add(str(value.name))
    return names


def read_on(model: onnx.ModelProto) -> set[str]:
    """Outputs of a graph from whose numbers it computes another output in the same step.

    So it is with most next states: the new memory is computed, and then read. What only moves
    numbers is looked through, and a node with several outputs counts as one.
    """
    outputs = ir.from_proto(model).graph.outputs
    needed = {value: needed_for([value]) for value in outputs}
    names = set()
    for value in outputs:
        makers, waiting = set(), [value]
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node.op_type in _MOVES:
                waiting += reads(node)
            elif node is not None:
                makers.add(node)
        if any(makers & needed[other] for other in outputs if other is not value):
            names.add(str(value.name))
    return names
