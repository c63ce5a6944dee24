"""Integers and booleans that steer a graph: what they may be, and which branches a check saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract import TensorSpec
from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import GraphError
from stategate.export.passes.dataflow import constant_of, constant_values

_SAME = "Cast Expand Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze"
_COMPARING = "Equal Greater GreaterOrEqual Less LessOrEqual Mod"
_LOGIC = """Abs Add And Div Gather Max Min Mul Neg Not Or ReduceMax ReduceMin ReduceSum Sign Sub
Where Xor"""
_SAME_NUMBER, _COMPARES = frozenset(_SAME.split()), frozenset(_COMPARING.split())
_DECIDES = _SAME_NUMBER | _COMPARES | frozenset(_LOGIC.split())
_BRANCHES = {"If": 1, "Loop": 2}  # how many of their inputs say whether, or how often


def check_steering(
    model: onnx.ModelProto, inputs: Iterable[TensorSpec], exempt: Iterable[str]
) -> None:
    """Refuse to guess a number that decides which branch is taken."""
    graph, skip = ir.from_proto(model).graph, {*exempt}
    nodes = list(graph.all_nodes())
    for tensor in inputs:
        name, boolean = tensor.name, tensor.dtype == "bool"
        if dtype_named(tensor.dtype).numpy.kind == "f" or name in skip:
            continue
        reached = _reached(graph, name, _DECIDES)
        steers = [n for n in nodes if reached & {*n.inputs[: _BRANCHES.get(n.op_type, 0)]}]
        if steers:
            value = "true" if boolean else choices(model, [tensor]).get(name, [0])[0]
            raise GraphError(
                f"input {name!r} decides which branch of the graph is taken",
                found=f"{tensor.dtype} {list(tensor.shape)}, which steers "
                f"{', '.join(sorted({n.op_type for n in steers}))}; random numbers may miss the "
                "branch that your robot takes",
                expected="its value, its range or a recording",
                remedy=f"fix it for ever (--const {name}={value}), or "
                + ("" if boolean else f"give its range (--range {name}={value}:{value}), or ")
                + "recorded inputs (--episode FILE)",
            )


def choices(model: onnx.ModelProto, inputs: Iterable[TensorSpec]) -> dict[str, Sequence[int]]:
    """Numbers that an integer input may well have, where the graph says so, by input.

    An index has as many as there are rows in what it looks up, or places in a one-hot code; what is
    compared with constants has them first, and then their neighbours.
    """
    graph = ir.from_proto(model).graph

    def is_count(table: np.ndarray) -> bool:
        return bool((table == np.arange(table.size)).all())

    numbers: dict[str, Sequence[int]] = {}
    for tensor in inputs:
        if dtype_named(tensor.dtype).numpy.kind not in "iu":
            continue
        reached = _reached(graph, tensor.name, _SAME_NUMBER)
        rows: list[int] = []
        compared: list[int] = []
        for node in graph.all_nodes():
            takes = [value in reached for value in node.inputs]
            if not any(takes):
                continue
            tables = [constant_of(value) for value in node.inputs]
            if node.op_type == "Gather" and takes[1] and tables[0] is not None:
                rows.append(tables[0].shape[node.attributes.get_int("axis", 0)])
            if node.op_type == "OneHot" and takes[0] and tables[1] is not None:
                rows.append(int(tables[1].flat[0]))
            if node.op_type in _COMPARES:
                for table in (array.ravel() for array in tables if array is not None):
                    if node.op_type == "Equal" and table.size > 1 and is_count(table):
                        rows.append(table.size)  # a one-hot code, as torch writes it
                    # A few: an input may be compared with a whole table.
                    compared += map(int, table[:16])
        if rows:
            numbers[tensor.name] = range(min(rows))
        elif compared:
            near = [*compared, *(v + by for v in compared for by in (-1, 1)), 0, 1]
            limits = np.iinfo(tensor.dtype)
            fitting = [v for v in dict.fromkeys(near) if limits.min <= v <= limits.max]
            numbers[tensor.name] = fitting
    return numbers


class Branches:
    """Which sides of the branches of a graph were taken."""

    def __init__(self, model: onnx.ModelProto, constants: Iterable[str]) -> None:
        fixed = {v.name for v in constant_values(ir.from_proto(model).graph, constants)}
        self._names = {
            node.input[0]: node.name or f"If that gives {node.output[0]}"
            for node in model.graph.node
            if node.op_type == "If" and node.input[0] not in fixed
        }
        self._sides: dict[str, set[bool]] = {name: set() for name in self._names}

    @property
    def conditions(self) -> list[str]:
        """Tensors that say which side is taken."""
        return list(self._names)

    def add(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Note the conditions of one step."""
        for name, sides in self._sides.items():
            sides.add(bool(tensors[name].all()))

    def notes(self) -> tuple[str, ...]:
        """One sentence for each branch of which one side was never taken."""
        return tuple(
            f"only one branch of {self._names[name]!r} was seen, that for "
            f"{name} = {str(next(iter(sides))).lower()}"
            for name, sides in self._sides.items()
            if len(sides) == 1
        )


def _reached(graph: ir.Graph, name: str, through: frozenset[str]) -> set[ir.Value | None]:
    """Values that an input reaches through some operators, itself included."""
    reached: set[ir.Value | None] = {value for value in graph.inputs if value.name == name}
    before, nodes = 0, list(graph.all_nodes())
    # Until nothing is added: nodes of branches come after nodes that take their results.
    while len(reached) > before:
        before = len(reached)
        for node in nodes:
            # A Gather moves what it looks up; its index is used up there.
            moves = node.op_type == "Gather" and node.inputs[0] in reached
            if moves or (node.op_type in through and not reached.isdisjoint(node.inputs)):
                reached.update(node.outputs)
    return reached
