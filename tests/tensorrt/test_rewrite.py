"""What passes the check has a form for the parser, and that form computes the same."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError
from stategate.export.tensorrt.generations import GENERATIONS
from stategate.export.tensorrt.rules import findings
from stategate.export.tensorrt.variant import variant

REFUSALS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
)
SHAPE = (2, 3, 4)
STEP = StepSpec((TensorSpec("x", SHAPE),), (TensorSpec("y", SHAPE),), (StateSpec("s", SHAPE),))
FEED = {
    name: np.random.default_rng(i).uniform(0.1, 2.0, SHAPE).astype(np.float32)
    for i, name in enumerate("xs")
}


def step_of(nodes: list[onnx.NodeProto], parts: list[str], opset: int = 20) -> onnx.ModelProto:
    """A step of `STEP`: ``y`` is ``x`` plus everything in ``parts``, each summed."""
    nodes = [helper.make_node("Add", ["x", "s"], ["s_next"]), *nodes]
    before = "x"
    for i, part in enumerate(parts):
        nodes.append(helper.make_node("Cast", [part], [f"wide{i}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"wide{i}"], [f"sum{i}"], keepdims=0))
        after = f"y{i}" if i + 1 < len(parts) else "y"
        nodes.append(helper.make_node("Add", [before, f"sum{i}"], [after]))
        before = after
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("x", "s")]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("y", "s_next")]
    graph = helper.make_graph(nodes, "step", values, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def a_constant(draw: Any, value: np.ndarray, name: str) -> tuple[list[onnx.NodeProto], Any]:
    """A constant in one of the ways that ONNX has for it."""
    way = draw(st.sampled_from(["initializer", "node", "ints", "computed"]))
    tensor = numpy_helper.from_array(value, name)
    if way == "initializer":
        return [], tensor
    if way == "ints" and value.size:
        return [helper.make_node("Constant", [], [name], value_ints=value.tolist())], None
    raw = f"{name}_raw" if way == "computed" else name
    nodes = [helper.make_node("Constant", [], [raw], value=numpy_helper.from_array(value, raw))]
    if way == "computed":
        nodes.append(helper.make_node("Abs", [raw], [name]))
    return nodes, None


@st.composite
def models(draw: Any) -> onnx.ModelProto:
    """A step with one operator whose form changed between opset 17 and 20, in all its ways."""
    kind = draw(st.sampled_from(["reduce", "split", "norm", "gelu", "quantised"]))
    event(kind)
    opset = draw(st.sampled_from([17, 18, 20]))
    half = draw(st.booleans())
    floats = np.float16 if half else np.float32
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=10 if half else 1)]
    parts, tensors = ["r"], []
    if kind == "reduce":
        operator = draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"]))
        axes = draw(st.sampled_from([None, [], [0], [-1], [1, 2], [0, -1]]))
        more: dict[str, Any] = {"keepdims": draw(st.integers(0, 1))}
        newer = opset >= 18 or operator == "ReduceSum"
        if newer and draw(st.booleans()):
            more["noop_with_empty_axes"] = 1
        names = ["a"]
        if axes is not None and newer:
            made, tensor = a_constant(draw, np.array(axes, np.int64), "axes")
            nodes, tensors, names = [*nodes, *made], [tensor], ["a", "axes"]
        elif axes:
            more["axes"] = axes
        if operator == "ReduceMax" and opset == 20 and draw(st.booleans()):
            nodes[0] = helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BOOL)
        nodes.append(helper.make_node(operator, names, ["r"], **more))
    elif kind == "split":
        axis, count = draw(st.integers(-3, 2)), draw(st.integers(1, 4))
        parts = [f"r{i}" for i in range(count)]
        more, names = {"axis": axis}, ["a"]
        if draw(st.booleans()):
            sizes = np.array([SHAPE[axis] - count + 1] + [1] * (count - 1), np.int64)
            made, tensor = a_constant(draw, sizes, "sizes")
            nodes, tensors, names = [*nodes, *made], [tensor], ["a", "sizes"]
        elif opset >= 18:
            more["num_outputs"] = count
        nodes.append(helper.make_node("Split", names, parts, **more))
    elif kind == "norm":
        axis = draw(st.integers(-3, 2))
        more = {"axis": axis, "epsilon": draw(st.sampled_from([1e-5, 0.1]))}
        names = ["a", "scale"]
        tensors = [numpy_helper.from_array(np.full(SHAPE[axis:], 1.5, floats), "scale")]
        if draw(st.booleans()):
            names.append("bias")
            tensors.append(numpy_helper.from_array(np.full(SHAPE[axis:], 0.25, floats), "bias"))
        given = ["r", "mean"] if draw(st.booleans()) else ["r"]
        nodes.append(helper.make_node("LayerNormalization", names, given, **more))
    elif kind == "gelu":
        opset = 20
        told = draw(st.sampled_from([{}, {"approximate": "tanh"}, {"approximate": "none"}]))
        nodes.append(helper.make_node("Gelu", ["a"], ["r"], **told))
    else:
        extents = draw(st.sampled_from([(), (3,), (3, 4)]))
        scales = draw(st.sampled_from([(), (1,), (3,), (4,)]))
        weights = np.arange(np.prod(extents, dtype=int), dtype=np.int8).reshape(extents)
        tensors = [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.full(scales, 0.5, np.float32), "scale"),
        ]
        more = draw(st.sampled_from([{}, {"axis": 0}, {"axis": -1}]))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "scale"], ["r"], **more))
    model = step_of(nodes, parts, opset)
    model.graph.initializer.extend(tensor for tensor in tensors if tensor is not None)
    return model


def exact(graph: bytes) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, FEED), strict=True))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(models())
def test_what_passes_the_check_has_a_form_that_computes_the_same(model: onnx.ModelProto) -> None:
    raw = model.SerializeToString()
    try:
        right = exact(raw)
    except REFUSALS:
        right = {}  # it is not valid at all
    for generation in GENERATIONS.values():
        if findings(model, STEP, generation):
            event(f"{generation.name} refuses")
            continue
        event(f"{generation.name} takes")
        with nullcontext() if right else suppress(GraphError):
            form = variant(raw, STEP, generation)
        if right:
            ours = exact(form.graph)
            for name, value in right.items():
                np.testing.assert_allclose(ours[name], value, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([helper.make_node("LayerNormalization", ["x", "x"], ["r"], axis=5)], "axis 5 of 3 axes"),
        ([helper.make_node("Pad", ["x", "x"], ["r"], mode="wrap")], "mode wrap of a later opset"),
        ([helper.make_node("IsNaN", ["x"], ["stategate_1"]),
          helper.make_node("Cast", ["stategate_1"], ["r"], to=1)], "begins with stategate_"),
    ],
)  # fmt: skip
def test_a_node_without_a_form_is_named(nodes: list[onnx.NodeProto], told: str) -> None:
    found = findings(step_of(nodes, ["r"]), STEP, GENERATIONS["8.5"])
    assert told in "; ".join(str(one) for one in found)
