"""Rules that every exported graph keeps, and the clean-up that makes its bytes reproducible."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from stategate.contract import StepSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError, SpecError

_RECURRENT = frozenset({"LinearAttention", "CausalConvWithState"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def opset_of(model: onnx.ModelProto) -> int:
    """Opset of the default domain."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def domains_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operator domains beyond the standard's that the graph needs."""
    return tuple(sorted({o.domain for o in model.opset_import} - {"", "ai.onnx"}))


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches and loop bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                yield from every_node(inner)


def fixed_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Shape of a graph input or output, or None where an extent or the rank is open."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    extents = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    return tuple(extents) if all(e > 0 for e in extents) else None


def without_traces_of_the_build(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without stack traces, source paths and other facts of the exporting machine.

    Precondition: a valid model. Postcondition: the same computation, and the same bytes for the
    same model wherever it is exported.
    """
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.doc_string = ""
    del clean.metadata_props[:]
    for part in (clean.graph, *clean.functions):
        part.doc_string = ""
        del part.metadata_props[:]
        for value in part.value_info:
            del value.metadata_props[:]
    for tensor in clean.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for value in (*clean.graph.input, *clean.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in every_node(clean.graph):
        node.doc_string = ""
        del node.metadata_props[:]
    return clean


def with_choices_of_booleans(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with integers in every Where that chooses booleans: ONNX Runtime has none.

    Precondition: a graph without branches.
    """
    if all(node.op_type != "Where" for node in model.graph.node):
        return model
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    booleans = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.BOOL}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        result = node.output[0]
        if node.op_type == "Where" and result in booleans:
            names = [f"{result}.{part}" for part in ("then", "else", "chosen")]
            for boolean, name in zip(node.input[1:], names, strict=False):
                nodes.append(helper.make_node("Cast", [boolean], [name], to=TensorProto.INT32))
            nodes.append(helper.make_node("Where", [node.input[0], *names[:2]], names[2:]))
            nodes.append(helper.make_node("Cast", names[2:], [result], to=TensorProto.BOOL))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_opset_of_its_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, importing a newer opset where one of its operators came only then.

    Raises:
        GraphError: The installed onnx does not know such an operator.
    """
    new = {n.op_type for n in model.graph.node if not n.domain and n.op_type in _RECURRENT}
    unknown = sorted(name for name in new if not onnx.defs.has(name))
    if unknown:
        raise GraphError(
            "the installed onnx does not know operators of the graph",
            found=f"onnx {onnx.__version__} without {', '.join(unknown)}",
            expected="an onnx with opset 27",
            remedy="update onnx, or export with --operators portable",
        )
    needed = [onnx.defs.get_schema(name).since_version for name in new]
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max([entry.version, *needed])
    return model


def check_graph(model: onnx.ModelProto, spec: StepSpec, *, branch_free: bool) -> None:
    """Hold a graph against the contract.

    Args:
        model: The graph.
        spec: What it must take and give.
        branch_free: Whether control flow is refused.

    Raises:
        GraphError: It is invalid, has branches, or its signature is not that of ``spec``.
    """
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as problem:
        raise GraphError("the graph is not valid ONNX", found=str(problem)) from problem
    if branch_free:
        branches = sorted({n.op_type for n in every_node(model.graph)} & CONTROL_FLOW)
        if branches:
            raise GraphError(
                "the step has control flow",
                found=", ".join(branches),
                expected="a branch-free graph, so that every engine can run it",
                remedy="choose with torch.where(condition, a, b) instead of torch.cond or loops",
            )
    initial = {tensor.name for tensor in model.graph.initializer}
    free_inputs = [v for v in model.graph.input if v.name not in initial]
    for side, promised, actual in (
        ("input", spec.graph_inputs(), free_inputs),
        ("output", spec.graph_outputs(), model.graph.output),
    ):
        found = {value.name: value for value in actual}
        if set(found) != set(promised):
            raise GraphError(
                f"the graph's {side}s are not those of the step's spec",
                found=", ".join(sorted(found)) or "none",
                expected=", ".join(sorted(promised)),
                remedy=f"an unused {side} disappears in tracing: use it, or leave it out of the "
                "spec"
                if set(found) < set(promised)
                else None,
            )
        for name, tensor in promised.items():
            code = found[name].type.tensor_type.elem_type
            try:
                actual_dtype = dtype_from_onnx(code).name
            except SpecError:
                actual_dtype = f"TensorProto type {code}"
            actual_shape = fixed_shape(found[name])
            if actual_dtype != tensor.dtype or actual_shape not in (None, tensor.shape):
                raise GraphError(
                    f"{side} {name!r} of the graph differs from the spec",
                    found=f"{actual_dtype} {actual_shape}",
                    expected=f"{tensor.dtype} {tensor.shape}",
                )
