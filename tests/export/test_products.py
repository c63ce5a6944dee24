"""Weights turned and temporaries shared for C: the numbers are those of the graph as it was."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.common.compiler import compile_library
from stategate.common.onnx_runtime import one_thread
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import LowerError
from stategate.export.c.lower import lower
from stategate.export.c.products import by_rows
from stategate.export.c.scratch import off_the_stack

# No multiples of what the loops take at once; 2 x 3 x 330 elements are worth joining loops for.
K, N, WIDE = 300, 19, 330
SPEC = StepSpec(
    inputs=(TensorSpec("x", (1, K)),),
    outputs=(
        TensorSpec("float", (1, N)),
        TensorSpec("per_column", (1, N)),
        TensorSpec("per_matrix", (1, N)),
        TensorSpec("off_centre", (1, N)),
        TensorSpec("twice", (1, 1, N)),
        TensorSpec("widened", (K, N)),
        TensorSpec("read", (1, 2, 4, WIDE)),
    ),
    states=(StateSpec("s", (1, 2, 3, WIDE)),),
)


def graph() -> onnx.ModelProto:
    """Products of every kind: with constants of each form, and of two tensors that are computed."""
    rng = np.random.default_rng(3)
    integers = rng.integers(-127, 128, (K, N), np.int8)
    arrays = {
        "w": rng.standard_normal((K, N)).astype(np.float32),
        "q": integers,
        "scales": rng.random(N).astype(np.float32) / 100,
        "by_matrix.scales": np.array([0.01], np.float32),  # a name that ours could have had
        "zeros": np.zeros(N, np.int8),
        "centres": rng.integers(-9, 9, N, np.int8),
        "left": rng.standard_normal((1, 2, 4, 3)).astype(np.float32),
        "cube": np.array([1, 1, K]),
        "decay": rng.random((1, 2, 3, 1)).astype(np.float32),
        "change": rng.standard_normal((1, 1, 1, WIDE)).astype(np.float32),
        "open": np.array([True, False]).reshape(1, 2, 1, 1),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["float"]),
        node("DequantizeLinear", ["q", "scales", "zeros"], ["by_column"], axis=1),
        node("MatMul", ["x", "by_column"], ["per_column"]),
        node("DequantizeLinear", ["q", "by_matrix.scales"], ["by_matrix"]),
        node("MatMul", ["x", "by_matrix"], ["per_matrix"]),
        node("DequantizeLinear", ["q", "scales", "centres"], ["shifted"], axis=1),
        node("MatMul", ["x", "shifted"], ["off_centre"]),
        node("DequantizeLinear", ["q", "by_matrix.scales"], ["widened"]),
        node("Reshape", ["x", "cube"], ["x3"]),
        node("MatMul", ["x3", "by_column"], ["twice"]),
        node("MatMul", ["left", "s"], ["read"]),
        node("Mul", ["s", "decay"], ["decayed"]),
        node("Mul", ["decay", "change"], ["outer"]),
        node("Add", ["decayed", "outer"], ["written"]),
        node("Where", ["open", "written", "s"], ["chosen"]),
        node("Exp", ["chosen"], ["read_twice"]),
        node("Add", ["read_twice", "read_twice"], ["s_next"]),
    ]
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, t.shape) for n, t in side.items()]
        for side in (SPEC.graph_inputs(), SPEC.graph_outputs())
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    body = helper.make_graph(nodes, "products", *infos, weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    takes = SPEC.graph_inputs().items()
    return {name: rng.standard_normal(t.shape).astype(np.float32) for name, t in takes}


def computed(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By ONNX Runtime, which multiplies in float32."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        one_thread(onnxruntime.SessionOptions()),
        ["CPUExecutionProvider"],
    )
    names = list(SPEC.graph_outputs())
    return dict(zip(names, session.run(names, feeds), strict=True))


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-5, err_msg=name)


def test_turned_weights_are_used_where_they_can_be_and_give_the_same(
    feeds: dict[str, np.ndarray],
) -> None:
    model = onnx.shape_inference.infer_shapes(graph())
    turned = by_rows(model)
    kinds = {node.output[0]: node.op_type for node in turned.graph.node}
    assert kinds["float"] == "Gemm"
    assert {kinds[n] for n in ("per_column", "per_matrix", "twice")} == {"MatMulNBits"}
    # A centre that is not zero, and what is no constant, stay as they are.
    assert kinds["off_centre"] == kinds["read"] == "MatMul"
    assert "by_column" not in kinds and "shifted" in kinds
    rows = [t.name for t in turned.graph.initializer if t.data_type == TensorProto.INT8]
    assert len([name for name in rows if name.endswith(".rows")]) == 2  # two readers share one
    # Such blocks are for our C alone: a float product stands in for each in ONNX Runtime.
    initial = {t.name: numpy_helper.to_array(t) for t in turned.graph.initializer}
    for node in turned.graph.node:
        if node.op_type == "MatMulNBits":
            values, scales = (initial[name] for name in node.input[1:])
            dense = (values[:, 0].astype(np.float32) * scales[:, None]).T
            turned.graph.initializer.append(numpy_helper.from_array(dense, f"{node.output[0]}.w"))
            made = helper.make_node("MatMul", [node.input[0], f"{node.output[0]}.w"], node.output)
            node.CopyFrom(made)
    close(computed(turned, feeds), computed(model, feeds))


def test_c_of_turned_weights_computes_what_onnxruntime_computes(
    feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sources = lower(graph().SerializeToString(), SPEC, {})
    path = tmp_path / "lib.so"
    path.write_bytes(compile_library(sources).library)
    compute = ctypes.CDLL(str(path)).stategate_compute
    gives = SPEC.graph_outputs().items()
    # From 1e36 on, integers times inputs pass the largest float before they are scaled.
    for size in (np.float32(1), np.float32(1e36)):
        given = feeds | {"x": feeds["x"] * size}
        found = {name: np.full(t.shape, np.nan, np.float32) for name, t in gives}
        tables = [
            (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays.values()))
            for arrays in (given, found)
        ]
        assert compute(*tables) == 0
        wanted = computed(graph(), given)
        close({n: a / size for n, a in found.items()}, {n: a / size for n, a in wanted.items()})


def test_an_operator_of_unknown_shape_is_named() -> None:
    model = graph()
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output.remove(next(o for o in model.graph.output if o.name == "float"))
    model.graph.node.append(helper.make_node("Neg", ["float"], ["negative"]))
    wanted = helper.make_tensor_value_info("negative", TensorProto.FLOAT, (1, N))
    model.graph.output.append(wanted)
    outputs = tuple(
        TensorSpec("negative", t.shape) if t.name == "float" else t for t in SPEC.outputs
    )
    with pytest.raises(LowerError, match="made by com.microsoft.MatMul"):
        lower(model.SerializeToString(), msgspec.structs.replace(SPEC, outputs=outputs), {})


def test_no_weight_is_printed_as_text() -> None:
    sources = lower(graph().SerializeToString(), SPEC, {})
    assert re.search(rb"const EMX_UNUSED (float|u?int8_t) \w+\[", sources["read.c"]) is None
    assert len(sources["weights.bin"]) > K * N * (4 + 1 + 1)


def test_loops_that_only_feed_another_are_part_of_it() -> None:
    text = lower(graph().SerializeToString(), SPEC, {})["read.c"].decode()
    calls = text[text.index("void stategate_read(") :]
    # decayed and written are numbers in the loop of chosen, which the exponential takes.
    assert not re.search(r"node\w+_v\d+_(decayed|written|chosen)\b", calls)
    assert {"decayed", "written", "chosen"} <= set(re.findall(r"one_tmp\d+_v\d+_(\w+) =", text))
    # What is read twice stays an array.
    assert re.search(r"tmp\d+_v\d+_read_twice", calls)


CALLS = """\
void step(const float x[4], float y[4]) {
    float tmp0[1][100];
    float tmp1[200];
    bool tmp2_mask[1][4];
    float tmp3[64];
    one(x, tmp0);
    two(tmp0, tmp1);
    three(tmp1, tmp2_mask);
    four(tmp1, tmp2_mask, tmp3);
    five(tmp3, y);
}
"""


def test_temporaries_share_memory_where_they_are_never_needed_together() -> None:
    text = off_the_stack(CALLS, 0)
    sizes = {kind: int(n) for kind, n in re.findall(r"(\w+)_memory\[(\d+)\]", text)}
    assert sizes == {"float": 256 + 128, "bool": 64}  # two of the three float32, rounded up
    places = {n: int(at) for n, at in re.findall(r"\(\*const (\w+)\).*float_pool \+ (\d+)\)", text)}
    assert places == {"tmp1": 0, "tmp0": 256, "tmp3": 256}
    assert "float (*const tmp0)[100] = " in text and "bool (*const tmp2_mask)[4] = " in text


def test_temporaries_of_code_with_branches_share_nothing() -> None:
    text = off_the_stack(CALLS.replace("    two(", "    for (;;)\n    two("), 0)
    assert f"float_memory[{128 + 256 + 64}]" in text


def test_few_temporaries_stay_where_they_are() -> None:
    assert off_the_stack(CALLS, 10**5) == CALLS
