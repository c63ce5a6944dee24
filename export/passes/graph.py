"""Rules that every exported graph keeps, and how a pass of onnx-ir is run over a serialised one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

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


class Writer(ir.tape.Tape):
    """Adds nodes and constants to a graph, at its end; sort the graph after the last one.

    Every name begins with the prefix. Names that onnx-ir gives by itself may be those of constants
    of the exporter.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        super().__init__(graph)
        self._graph, self._prefix = graph, prefix

    def __call__(
        self, operator: str, *inputs: ir.Value | None, output: str = "", **attributes: Any
    ) -> ir.Value:
        """The result of a new node."""
        name = f"{self._prefix}/{len(self.nodes)}.{operator}"
        return self.op(
            operator, inputs, attributes, name=name, output=ir.Value(name=output or name)
        )

    def constant(self, value: object, dtype: type) -> ir.Value:
        """A new initialiser."""
        name = f"{self._prefix}/constant {len(self.initializers)}"
        return self.initializer(ir.tensor(np.array(value, dtype), name=name))


def after_passes(model: onnx.ModelProto, *passes: ir.passes.PassBase) -> onnx.ModelProto:
    """A copy of a model that some passes went over; errors of a pass come as they are."""
    work = ir.from_proto(model)
    for each in passes:
        work = each(work).model
    return ir.to_proto(work)


def serialised(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same ones in every process."""
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def replace_all(values: Any, others: list[ir.Value]) -> None:
    """Let the inputs or outputs of a graph be others."""
    values.clear()
    values.extend(others)


def without_traces_of_the_build(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without stack traces, source paths and other facts of the exporting machine.

    The computation is the same, and so are the bytes of one model wherever it is exported.
    """
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    _clear_notes(clean)
    return clean


def _clear_notes(message: Any) -> None:
    # Every kind of part has these two fields, values and attributes too, so none is listed here.
    for field, content in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [content] if hasattr(content, "ListFields") else content:
                _clear_notes(part)


class ChooseBooleansAsIntegers(ir.passes.InPlacePass):
    """Put integers into every Where that chooses booleans: ONNX Runtime has none for those.

    Requires a graph without branches; guarantees the same results.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each such node; the model, and whether there was one."""
        choices = [n for n in model.graph if n.op_type == "Where" and _is_boolean(n.outputs[0])]
        for node in choices:
            write = Writer(model.graph, str(node.outputs[0].name))
            numbers = [write("Cast", v, to=ir.DataType.INT32) for v in node.inputs[1:]]
            chosen = write("Where", node.inputs[0], *numbers)
            result = write("Cast", chosen, to=ir.DataType.BOOL)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [], node.outputs, [result]
            )
        model.graph.sort()
        return ir.passes.PassResult(model, bool(choices))


def _is_boolean(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.BOOL


def with_choices_of_booleans(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after `ChooseBooleansAsIntegers`, where it has any choice."""
    if all(node.op_type != "Where" for node in model.graph.node):
        return model
    return after_passes(onnx.shape_inference.infer_shapes(model), ChooseBooleansAsIntegers())


def with_opset_of_its_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, importing a newer opset where one of its operators came only then."""
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
    """Compare a graph with the signature that it must have."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as problem:
        raise GraphError("the graph is not valid ONNX", found=str(problem)) from problem
    branches = sorted({n.op_type for n in every_node(model.graph)} & CONTROL_FLOW)
    if branch_free and branches:
        raise GraphError(
            "the step has control flow",
            found=", ".join(branches),
            expected="a branch-free graph, so that every engine can run it",
            remedy="choose with torch.where(condition, a, b) instead of torch.cond or loops",
        )
    constants = {tensor.name for tensor in model.graph.initializer}
    free_inputs = [v for v in model.graph.input if v.name not in constants]
    for side, promised, values in (
        ("input", spec.graph_inputs(), free_inputs),
        ("output", spec.graph_outputs(), model.graph.output),
    ):
        actual = {value.name: value for value in values}
        if set(actual) != set(promised):
            raise GraphError(
                f"the graph's {side}s are not those of the step's spec",
                found=", ".join(sorted(actual)) or "none",
                expected=", ".join(sorted(promised)),
                remedy=f"an unused {side} disappears in tracing: use it, or leave it out of the "
                "spec"
                if set(actual) < set(promised)
                else None,
            )
        for name, tensor in promised.items():
            code = actual[name].type.tensor_type.elem_type
            try:
                dtype = dtype_from_onnx(code).name
            except SpecError:
                dtype = f"TensorProto type {code}"
            shape = fixed_shape(actual[name])
            if dtype != tensor.dtype or shape not in (None, tensor.shape):
                raise GraphError(
                    f"{side} {name!r} of the graph differs from the spec",
                    found=f"{dtype} {shape}",
                    expected=f"{tensor.dtype} {tensor.shape}",
                )
