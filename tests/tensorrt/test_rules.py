"""What TensorRT takes of a graph, and the form in which it gets it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError, TargetError
from stategate.contract.precision import PRESETS
from stategate.contract.tensorrt_plan import GUARD
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from
from stategate.export.passes.projections import chosen, projections
from stategate.export.passes.quantise import quantised
from stategate.export.tensorrt.build import Settings, builder_flags
from stategate.export.tensorrt.generations import GENERATIONS, generation_of
from stategate.export.tensorrt.rules import check_legal, findings
from stategate.export.tensorrt.variant import variant
from stategate.models.load import load_model

TEN = GENERATIONS["10"]
STEP = StepSpec((TensorSpec("x", (1, 8)),), (TensorSpec("y", (1, 8)),), (StateSpec("s", (1, 8)),))


def step_graph(*nodes: onnx.NodeProto, opset: int = 20, **constants: np.ndarray) -> onnx.ModelProto:
    """A step of `STEP`; ``s_next`` is ``x + s``."""
    every = [helper.make_node("Add", ["x", "s"], ["s_next"]), *nodes]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    tell = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8])
        for n in ("x", "s", "y", "s_next")
    ]
    graph = helper.make_graph(every, "step", tell[:2], tell[2:], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(kind: str, inputs: list[str], **more: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, ["y"], name="bad", **more)


Q = {"scale": np.float32(0.1), "zero": np.int8(0)}
BRANCH = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["b"])],
    "branch",
    [],
    [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 8])],
)


@pytest.mark.parametrize(
    ("bad", "constants", "told"),
    [
        (node("If", ["c"], then_branch=BRANCH, else_branch=BRANCH), {"c": np.bool_(1)}, "branch"),
        (node("Gelu", ["x"], domain="com.microsoft"), {}, "domain com.microsoft"),
        (node("DynamicQuantizeLinear", ["x"]), {}, "found at run time"),
        (node("QuantizeLinear", ["x", "scale", "zero"]), Q | {"zero": np.int8(3)}, "not zero"),
        (node("QuantizeLinear", ["x", "scale", "zero"]), Q | {"zero": np.uint8(0)}, "uint8"),
        (node("QuantizeLinear", ["x", "scale"]), Q, "makes it uint8"),
        (node("DequantizeLinear", ["w", "scale"]), Q | {"w": np.ones(8, np.uint8)}, "of uint8"),
        (node("QuantizeLinear", ["x", "s", "zero"]), Q, "scale that is computed"),
        (node("QuantizeLinear", ["x", "scale", "zero"]), Q | {"scale": np.float32(-1)}, "positive"),
        (node("DequantizeLinear", ["x", "scale", "zero"]), Q | {"zero": np.int32(0)}, "int32"),
        (node("NonZero", ["x"]), {}, "do not depend on data"),
        (node("Det", ["x"]), {}, "operators that TensorRT has"),
        (
            node("ScatterElements", ["x", "at", "s"], reduction="add"),
            {"at": np.zeros((1, 8), np.int64)},
            "without a reduction",
        ),
        (node("LinearAttention", ["x"]), {}, "came later"),
    ],
)  # fmt: skip
def test_a_rule_names_the_node_and_the_remedy(
    bad: onnx.NodeProto, constants: dict[str, np.ndarray], told: str
) -> None:
    model = step_graph(bad, **{name: np.asarray(v) for name, v in constants.items()})
    with pytest.raises(GraphError, match="TensorRT 10 would not take the graph") as caught:
        check_legal(model, STEP, TEN)
    assert told in str(caught.value) and "node bad" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "float16", "int8", "float64"])
def test_states_of_other_types_are_refused(dtype: str) -> None:
    spec = StepSpec(STEP.inputs, STEP.outputs, (StateSpec("s", (1, 8), dtype),))
    found = findings(step_graph(node("Relu", ["x"])), spec, TEN)
    assert [one.where for one in found] == ["state s"]


def test_an_open_extent_and_a_wide_integer_are_refused() -> None:
    model = step_graph(node("Relu", ["x"]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    (one,) = findings(model, STEP, TEN)
    assert one.where == "input x" and one.found == "an open extent"
    spec = StepSpec((TensorSpec("x", (1, 8), "int64"),), STEP.outputs, STEP.states)
    assert findings(step_graph(node("Relu", ["x"])), spec, TEN) == []
    assert findings(step_graph(node("Relu", ["x"])), spec, GENERATIONS["8.6"])


@pytest.mark.parametrize(
    ("version", "library", "name"),
    [
        ("8.5.2", "tensorrt", "8.5"),
        ("8.6.1", "tensorrt", "8.6"),
        ("10.16.2.10", "tensorrt", "10"),
        ("11.4.1", "tensorrt", "11"),
        ("1.7.1.116", "tensorrt_rtx", "11"),
    ],
)
def test_every_supported_version_has_a_generation(version: str, library: str, name: str) -> None:
    assert generation_of(version, library).name == name


@pytest.mark.parametrize("version", ["8.2.1", "7.1", "1.7.1", "12.0", ""])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(TargetError, match="not supported"):
        generation_of(version)


@cache
def traced(name: str) -> Candidate:
    return candidate_from(load_model(name))


def exact(graph: bytes, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph says, without the rewriting that ONNX Runtime does by default.

    That would compute with int8 activations where only weights are in int8.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.slow
@pytest.mark.corners("aura-hard-float32", "sega-int8")
@pytest.mark.parametrize("precision", ["float32", "float16-weights", "int8-weights", "int8"])
@pytest.mark.parametrize("name", ["aura-hard", "sega"])
def test_the_form_for_each_generation_computes_the_same(name: str, precision: str) -> None:
    candidate = traced(name)
    spec = candidate.spec
    model = onnx.load_model_from_string(candidate.graph)
    plan = PRESETS[precision]
    ranges = {p.data: 4.0 for p in projections(model, spec)}
    raw = quantised(model, spec, plan, ranges).SerializeToString()
    rng = np.random.default_rng(0)
    feed = {
        n: (rng.standard_normal(t.shape) if t.dtype[0] == "f" else rng.integers(0, 2, t.shape))
        .astype(t.dtype)
        for n, t in spec.graph_inputs().items()
    }  # fmt: skip
    right = exact(raw, feed)
    answers: dict[bytes, dict[str, np.ndarray]] = {}  # 10 and 11 take the same graph
    for generation in GENERATIONS.values():
        form = variant(raw, spec, generation)
        if form.graph not in answers:
            answers[form.graph] = exact(form.graph, feed)
        ours = answers[form.graph]
        for tensor, value in right.items():
            np.testing.assert_allclose(ours[tensor], value, rtol=1e-4, atol=2e-5)
        sums = [
            np.abs(right[s.next_name].astype(np.float64)).sum()
            for s in spec.states
            if s.name in form.guarded
        ]
        np.testing.assert_allclose(ours[GUARD], sums, rtol=1e-4)
        told = onnx.load_model_from_string(form.graph)
        assert told.opset_import[0].version == generation.opset
        assert not {n.op_type for n in told.graph.node} & generation.lacks


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_the_guard_is_not_finite_where_a_next_state_is_not(poison: float) -> None:
    form = variant(step_graph(node("Relu", ["x"])).SerializeToString(), STEP, TEN)
    s = np.zeros((1, 8), np.float32)
    assert exact(form.graph, {"x": s, "s": s})[GUARD] == 0.0
    s[0, 3] = poison
    assert not np.isfinite(exact(form.graph, {"x": np.zeros_like(s), "s": s})[GUARD])


def test_precision_flags_are_for_releases_that_choose_types_alone() -> None:
    candidate = traced("aura-hard")
    model = onnx.load_model_from_string(candidate.graph)
    plan = PRESETS["int8"]
    ranges = {p.data: 4.0 for p in chosen(plan, projections(model, candidate.spec))}
    raw = quantised(model, candidate.spec, plan, ranges).SerializeToString()
    settings = Settings(1 << 20)
    assert builder_flags(raw, GENERATIONS["8.6"], settings) == ["INT8"]
    assert builder_flags(raw, TEN, settings) == []
    half = quantised(model, candidate.spec, PRESETS["float16-weights"]).SerializeToString()
    assert "FP16" in builder_flags(half, GENERATIONS["8.5"], settings)
    stored = variant(half, candidate.spec, GENERATIONS["8.5"]).graph
    assert builder_flags(stored, GENERATIONS["8.5"], settings) == []
