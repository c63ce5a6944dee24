"""Products and loops in C: the numbers are those of the graph, and temporaries share memory."""

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
from stategate.export.c.lower import source_of
from stategate.export.c.place import lives_of, placed

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


@pytest.mark.slow
def test_c_of_products_computes_what_onnxruntime_computes(
    feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sources = source_of(graph().SerializeToString(), SPEC, {}).files
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
    with pytest.raises(LowerError, match="com.microsoft.MatMul"):
        source_of(model.SerializeToString(), msgspec.structs.replace(SPEC, outputs=outputs), {})


def test_no_weight_is_printed_as_text() -> None:
    sources = source_of(graph().SerializeToString(), SPEC, {}).files
    assert not any(b"= {" in text for name, text in sources.items() if name == "read.c")
    assert len(sources["weights.bin"]) > K * N * (4 + 1 + 1)


def test_operators_that_only_feed_another_share_its_loop() -> None:
    text = source_of(graph().SerializeToString(), SPEC, {}).files["read.c"].decode()
    written = next(f for f in text.split("STATEGATE_ALONE") if "stategate_expf" in f)
    # decayed, written, chosen and read_twice are numbers there, and their sum is stored.
    assert len(re.findall(r"^ +const float t\d+ = ", written, re.MULTILINE)) == 5
    assert len(re.findall(r"^ +b\d+\[.*\] = ", written, re.MULTILINE)) == 1


def test_temporaries_share_memory_where_they_are_never_needed_together() -> None:
    reads = [["x"], ["a"], ["b"], ["b", "c"], ["d"]]
    writes = [["a"], ["b"], ["c"], ["d"], ["y"]]
    lives = lives_of(reads, writes, {"a": 100, "b": 200, "c": 4, "d": 64})
    assert {name: (life.first, life.last) for name, life in lives.items()} == {
        "a": (0, 1), "b": (1, 3), "c": (2, 3), "d": (3, 4),
    }  # fmt: skip
    places, total = placed(lives)
    assert places == {"b": 0, "a": 256, "d": 256, "c": 320} and total == 384
