"""Constants computed once, and branches that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from math import inf, prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stategate.contract.failures import failures
from stategate.export.passes.dataflow import extents, inner_graphs

Array = NDArray[Any]

# What gives another result each time, and what keeps weights in fewer bits until they are read.
_STAY = {"Bernoulli", "DequantizeLinear", "Dropout", "Multinomial", "QuantizeLinear"}
_STAY |= {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")}
_MAY_GROW = 64 * 1024  # bytes by which a result may be larger than the constants it is made of
MAY_WIDEN = 256  # the same of a Cast: weights in fewer bits stay in fewer bits


class FoldConstants(ir.passes.InPlacePass):
    """Compute what depends on constants alone, and the shapes that are known.

    Requires inferred shapes. Guarantees that no weight becomes wider than is allowed, and that what
    draws random numbers or has branches stays.
    """

    def __init__(self, may_widen: float = MAY_WIDEN) -> None:
        self._may_widen = may_widen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace nodes by initialisers; the model, and whether there was such a node."""
        graph, before = model.graph, len(model.graph)
        for node in graph:  # may be changed while it is walked
            results = _results(node, model.opset_imports, self._may_widen)
            for name, array in (results or {}).items():
                value = next(v for v in node.outputs if v.name == name)
                constant = ir.val(name, const_value=ir.tensor(array, name=name))
                value.replace_all_uses_with(constant, replace_graph_outputs=True)
                graph.register_initializer(constant)
            if results is not None:
                graph.remove(node, safe=True)
        return ir.passes.PassResult(model, len(graph) < before)


class TakeDecidedBranches(ir.passes.InPlacePass):
    """Put the branch that is taken in the place of each If whose condition is a constant."""

    def __init__(self) -> None:
        self._numbers = count()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each such If; the model, and whether there was one."""
        decided = [n for n in model.graph if n.op_type == "If" and _constant(n.inputs[0])]
        for node in decided:
            self._take(model.graph, node)
        return ir.passes.PassResult(model, bool(decided))

    def _take(self, graph: ir.Graph, node: ir.Node) -> None:
        condition = _constant(node.inputs[0])
        assert condition is not None
        side = "then_branch" if condition.numpy().all() else "else_branch"
        branch = node.attributes[side].as_graph()
        results, nodes = list(branch.outputs), list(branch)
        constants = list(branch.initializers.values())
        branch.outputs.clear()
        branch.remove(nodes)
        branch.initializers.clear()
        # Both branches, and those of other nodes, may use the same names.
        suffix = f" in branch {next(self._numbers)}"
        for value in (*constants, *(v for inner in nodes for v in inner.outputs if v.name)):
            value.name = f"{value.name}{suffix}"
        for inner in nodes:
            for value in inner.outputs:
                value.shape = None  # may speak of axes that are fixed by now
        for value in constants:
            graph.register_initializer(value)
        # A result may be a value from outside of the branch, and has to keep its own name then.
        pairs = [(r, v) for r, v in zip(results, node.outputs, strict=True) if v.name]
        copies = [ir.node("Identity", [result]) for result, _ in pairs]
        ir.convenience.replace_nodes_and_values(
            graph,
            node,
            [node],
            [*nodes, *copies],
            [value for _, value in pairs],
            [copy.outputs[0] for copy in copies],
        )


class GiveConstantOutputs(ir.passes.InPlacePass):
    """Let a node give each output: one that is a constant itself would be filled by nobody."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put a node behind each such constant; the model, and whether there was one."""
        constants = [(i, v) for i, v in enumerate(model.graph.outputs) if v.is_initializer()]
        for i, value in constants:
            name = str(value.name)
            ir.convenience.rename_values(value, f"{name} as a constant")
            output = ir.val(name, type=value.type, shape=value.shape)
            model.graph.append(ir.node("Identity", [value], outputs=[output]))
            model.graph.outputs[i] = output
        return ir.passes.PassResult(model, bool(constants))


def evaluated(
    node: ir.Node, feeds: Mapping[str, Array], opsets: Mapping[str, int]
) -> dict[str, Array] | None:
    """The results of one node by the reference of ONNX, by name; None where it has none for it."""
    names = [str(value.name) for value in node.outputs if value.name]
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        graph = helper.make_graph(
            [ir.to_proto(node)],
            "constant",
            [],
            [onnx.ValueInfoProto(name=name) for name in names],
            [numpy_helper.from_array(array, name) for name, array in feeds.items()],
        )
        model = helper.make_model(graph, opset_imports=imports)
        results: Any = ReferenceEvaluator(model).run(None, {})
    except failures():  # the reference raises what numpy raises; the node stays where it is
        return None
    is_array = all(isinstance(array, np.ndarray) for array in results)
    return dict(zip(names, results, strict=True)) if is_array else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value


def _results(node: ir.Node, opsets: Mapping[str, int], may_widen: float) -> dict[str, Array] | None:
    """What a node gives, by name; None where that depends on more than constants."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _STAY:
        return None
    if node.op_type in ("Shape", "Size"):
        shape = extents(node.inputs[0])
        if shape is None:
            return None
        end = node.attributes.get_int("end", len(shape))
        part = shape[node.attributes.get_int("start", 0) : end]
        numbers = part if node.op_type == "Shape" else prod(shape)
        return {str(node.outputs[0].name): np.array(numbers, np.int64)}
    inputs = [value for value in node.inputs if value is not None]
    if inner_graphs(node) or any(value.const_value is None for value in inputs):
        return None
    feeds = {str(v.name): v.const_value.numpy() for v in inputs if v.const_value is not None}
    arrays = evaluated(node, feeds, opsets)
    if arrays is None or any(a.dtype.kind not in "fiub" for a in arrays.values()):
        return None
    # What a Constant gives is in the file already, in another place.
    allowed = {"Cast": may_widen, "Constant": inf}.get(node.op_type, _MAY_GROW)
    growth = sum(a.nbytes for a in arrays.values()) - sum(a.nbytes for a in feeds.values())
    return None if growth > allowed else arrays
