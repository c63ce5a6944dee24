"""The copy of a step that C and TensorRT get: axes pinned, constants computed, branches decided.

The step's own graph stays as it is, which ONNX Runtime folds by itself when it loads it. Of an
adopted file the manifest holds the sizes of axes and the values of constant inputs; here they
become part of the graph. Whatever depends on constants alone is then computed once, and of a
branch whose condition is known the one that is taken replaces both.
"""

from __future__ import annotations

from math import inf

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.constants import (
    MAY_WIDEN,
    FoldConstants,
    GiveConstantOutputs,
    TakeDecidedBranches,
)
from stategate.export.passes.graph import after_passes, replace_all


def pinned(model: onnx.ModelProto, spec: StepSpec, *, widened: bool = False) -> onnx.ModelProto:
    """A copy of a step with the shapes and constants of its signature, and nothing left to fold.

    Its shapes are inferred, and constant inputs are no inputs any more. Thresholds stay inputs,
    because a session changes them.
    """
    if model.graph.sparse_initializer:  # onnx-ir would drop them without a word
        raise GraphError(
            "the graph has sparse weights, which only ONNX Runtime runs",
            found=", ".join(sparse.values.name for sparse in model.graph.sparse_initializer),
            expected="dense weights",
        )
    work = after_passes(model, PinSignature(spec))
    branches = TakeDecidedBranches()
    while True:
        try:
            work = onnx.shape_inference.infer_shapes(work, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as problem:
            raise GraphError("the graph has no fixed shapes", found=str(problem)) from problem
        folded = FoldConstants(inf if widened else MAY_WIDEN)(ir.from_proto(work))
        graph = folded.model
        if not (branches(graph).modified or folded.modified):
            break
        # A size that is a constant by now gives shapes to others, and so does a branch.
        work = ir.to_proto(graph)
    GiveConstantOutputs()(graph)
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph)


class PinSignature(ir.passes.InPlacePass):
    """Give inputs and outputs the shapes of a signature, and constant inputs their values.

    Guarantees that no input has an open axis or a constant value; shapes in between are forgotten,
    because they may speak of axes that were open.
    """

    def __init__(self, spec: StepSpec) -> None:
        self._shapes = {**spec.graph_inputs(), **spec.graph_outputs()}
        self._constants = {c.name: c.array() for c in spec.constants}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pin the model; it counts as changed."""
        graph = model.graph
        for node in graph:
            for value in node.outputs:
                value.shape = None
        for value in (*graph.inputs, *graph.outputs):
            if value.name in self._shapes:
                value.shape = ir.Shape(self._shapes[value.name].shape)
        for value in graph.inputs:
            if value.name in self._constants:
                value.const_value = ir.tensor(self._constants[value.name], name=value.name)
                graph.register_initializer(value)
        # An initialiser that is an input as well is a default, which no caller overrides here.
        replace_all(graph.inputs, [v for v in graph.inputs if not v.is_initializer()])
        return ir.passes.PassResult(model, True)
