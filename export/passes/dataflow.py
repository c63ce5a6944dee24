"""A step's graph as the split reads it: sizes of tensors, what a node costs, parts of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from onnx.utils import Extractor

from stategate.contract import TensorSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import SpecError
from stategate.export.passes.graph import every_node, fixed_shape

# Operators whose work is in proportion to what they give: computing one twice costs little.
_WORDS = """
Abs Add And Cast Ceil Clip Concat Constant ConstantOfShape Div Equal Exp Expand Flatten Floor
Gather Greater GreaterOrEqual Identity Less LessOrEqual Log Max Min Mul Neg Not Or Pow
Reciprocal Relu Reshape Sigmoid Sign Slice Softplus Split Sqrt Squeeze Sub Tanh Transpose
Unsqueeze Where Xor
"""
_CHEAP = frozenset(_WORDS.split())


class Dataflow:
    """The nodes of a graph and the tensors between them.

    Attributes:
        model: The graph; every node of it has outputs of its own.
        maker: Position of the node that gives a tensor, by its name.
        tensors: Shape and dtype of every tensor whose size is known.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        self.model = inferred
        self.nodes = list(inferred.graph.node)
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.tensors: dict[str, TensorSpec] = {}
        graph = inferred.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            shape = fixed_shape(value)
            if shape is not None:
                try:
                    dtype = dtype_from_onnx(value.type.tensor_type.elem_type).name
                except SpecError:
                    continue
                self.tensors[value.name] = TensorSpec(value.name, shape, dtype)

    def reads(self, node: int) -> set[str]:
        """What a node takes, from inside its branches too."""
        return {name for one in _within(self.nodes[node]) for name in one.input if name}

    def cheap(self, node: int) -> bool:
        """Whether a node may well be computed twice."""
        return not self.nodes[node].domain and self.nodes[node].op_type in _CHEAP

    def work(self, node: int) -> int:
        """Elements that a node gives, or multiplies where it multiplies matrices."""
        one = self.nodes[node]
        given = sum(self._elements(name) for name in one.output)
        if one.op_type not in ("MatMul", "Gemm"):
            return given
        left = self.tensors.get(one.input[0])
        transposed = any(a.name == "transA" and a.i for a in one.attribute)
        depth = left.shape[-2 if transposed else -1] if left is not None and left.shape else 1
        return given * depth

    @property
    def total(self) -> int:
        """The work of all nodes."""
        return sum(map(self.work, range(len(self.nodes))))

    def _elements(self, name: str) -> int:
        return math.prod(self.tensors[name].shape) if name in self.tensors else 1

    def needed_for(self, outputs: Iterable[str]) -> set[int]:
        """Every node that some tensors depend on."""
        found: set[int] = set()
        waiting = [self.maker[name] for name in outputs if name in self.maker]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [self.maker[name] for name in self.reads(node) if name in self.maker]
        return found

    def fixed(self, constants: Iterable[str]) -> set[str]:
        """Tensors that depend on initializers and on some other constants alone."""
        found = {*constants, *(tensor.name for tensor in self.model.graph.initializer)}
        for i, node in enumerate(self.nodes):
            if self.reads(i) <= found:
                found.update(node.output)
        return found

    def part(self, inputs: Iterable[str], outputs: Iterable[str]) -> onnx.ModelProto:
        """A graph of its own from some tensors to others, without the inputs that it does not need.

        Args:
            inputs: What it may take; each of known size.
            outputs: What it gives, none of them an input.
        """
        model = Extractor(self.model).extract_model(list(inputs), list(outputs))
        used = {name for node in every_node(model.graph) for name in node.input}
        kept = [value for value in model.graph.input if value.name in used]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.graph.name = self.model.graph.name
        model.producer_name, model.producer_version = (
            self.model.producer_name,
            self.model.producer_version,
        )
        onnx.checker.check_model(model)
        return model


_WORDS_OF_MOVES = """
Cast Concat Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze
"""
_MOVES = frozenset(_WORDS_OF_MOVES.split())


def used_inputs(model: onnx.ModelProto) -> set[str]:
    """Inputs of a graph that some output of it depends on."""
    flow = Dataflow(model)
    needed = flow.needed_for(value.name for value in model.graph.output)
    return {name for node in needed for name in flow.reads(node)}


def read_on(model: onnx.ModelProto) -> set[str]:
    """Outputs of a graph from whose numbers it computes another output in the same step.

    So it is with most next states: the new memory is computed, and then read. What only moves
    numbers is looked through, and a node with several outputs counts as one.
    """
    flow = Dataflow(model)
    names = [value.name for value in model.graph.output]
    needed = {name: flow.needed_for([name]) for name in names}
    found = set()
    for name in names:
        made, waiting = set(), [name]
        while waiting:
            node = flow.maker.get(waiting.pop())
            if node is not None and flow.nodes[node].op_type in _MOVES:
                waiting += flow.reads(node)
            elif node is not None:
                made.add(node)
        if any(made & needed[other] for other in names if other != name):
            found.add(name)
    return found


def _within(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
    return every_node(onnx.GraphProto(node=[node]))
