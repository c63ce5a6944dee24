"""Adopted files in fewer bits: weights in any layout, with scales that fit each output."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import ExportError, SpecError
from stategate.contract.precision import PRESETS, PrecisionPlan
from stategate.export.candidate import Candidate
from stategate.export.deploy import with_c
from stategate.export.frontends.adopt import adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.untrusted import unoptimised
from stategate.export.passes.graph import opset_of
from stategate.export.precision import in_precision

INT8 = onnx.TensorProto.INT8
LOUD = 10.0 ** np.linspace(-3, 3, 32)  # what each output's weights are multiplied with


def constant(name: str, array: np.ndarray, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), name)


def weight(*shape: int, channels: int) -> np.ndarray:
    """Random weights whose outputs differ by six decades, along one axis."""
    along = [-1 if axis == channels else 1 for axis in range(len(shape))]
    noise = np.random.default_rng(1).standard_normal(shape)
    return noise * LOUD[: shape[channels]].reshape(along)


def file_of(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    x: list[int],
    path: Path,
    opset: int = 17,
    extra: Iterable[onnx.ValueInfoProto] = (),
) -> Path:
    """A file that projects ``x`` to ``y`` and keeps a running mean of ``x``."""
    half = constant("half", np.array(0.5))
    both = [
        *nodes,
        helper.make_node("Mul", ["h", "half"], ["faded"], "fade"),
        helper.make_node("Mul", ["x", "half"], ["fresh"], "halve"),
        helper.make_node("Add", ["faded", "fresh"], ["h_out"], "mean"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, x) for name in ("x", "h", "h_out")]
    y = helper.make_tensor_value_info("y", 1, [None] * len(x))
    graph = helper.make_graph(both, "g", [*ends[:2], *extra], [y, ends[2]], [*constants, half])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def node(operator: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), ["y"], "project", **attributes)


W = weight(32, 16, channels=0)
LAYOUTS = {
    "a matrix on the right": ([node("MatMul", "x", "w")], [constant("w", W.T)], [4, 16], -1),
    "a matrix on the left": ([node("MatMul", "w", "x")], [constant("w", W)], [16, 4], 0),
    "a product that turns its weight": (
        [node("Gemm", "x", "w", transB=1, alpha=0.5)], [constant("w", W)], [4, 16], -1,
    ),
    "a product that turns its data": (
        [node("Gemm", "x", "w", transA=1)], [constant("w", W.T)], [16, 4], -1,
    ),
    "a product with a weight on the left": (
        [node("Gemm", "w", "x", transA=1)], [constant("w", W.T)], [16, 4], 0,
    ),
    "a convolution": (
        [node("Conv", "x", "w")], [constant("w", weight(32, 16, 3, channels=0))], [1, 16, 8], 1,
    ),
    "a grouped convolution of pictures": (
        [node("Conv", "x", "w", group=4)],
        [constant("w", weight(32, 4, 3, 3, channels=0))], [1, 16, 5, 5], 1,
    ),
    "a transposed convolution": (
        [node("ConvTranspose", "x", "w")],
        [constant("w", weight(16, 32, 3, channels=1))], [1, 16, 8], 1,
    ),
    "a product of ONNX Runtime": (
        [helper.make_node("FusedMatMul", ["x", "w"], ["y"], "p", "", "com.microsoft", transB=1)],
        [constant("w", W)], [4, 16], -1,
    ),
    "a weight that is turned in the file": (
        [helper.make_node("Transpose", ["w"], ["t"]), node("MatMul", "x", "t")],
        [constant("w", W)], [4, 16], -1,
    ),
    "a weight in double behind a cast": (
        [helper.make_node("Cast", ["w"], ["t"], to=1), node("MatMul", "x", "t")],
        [constant("w", W.T, "float64")], [4, 16], -1,
    ),
    "a weight in a node": (
        [helper.make_node("Constant", [], ["w"], value=constant("v", W.T)),
         node("MatMul", "x", "w")], [], [4, 16], -1,
    ),
}  # fmt: skip


def read_in(file: Path) -> Candidate:
    return adopt(file, Request({}, {}, {}, {"h": "h_out"})).candidate


def answer(candidate: Candidate, x: np.ndarray) -> np.ndarray:
    (y,) = unoptimised(candidate.graph).run(["y"], {"x": x, "h": np.zeros_like(x)})
    return y


@pytest.mark.case("D8")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_output_has_a_scale_of_its_own_in_any_layout(layout: str, tmp_path: Path) -> None:
    nodes, constants, shape, channels = LAYOUTS[layout]
    wide = read_in(file_of(nodes, constants, shape, tmp_path / "f.onnx"))
    small = in_precision(wide, PRESETS["int8-weights"])
    graph = onnx.load_model_from_string(small.graph).graph
    assert {t.data_type for t in graph.initializer if np.prod(t.dims) > 256} == {INT8}
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    right, results = (np.moveaxis(answer(c, x), channels, 0).reshape(32, -1) for c in (wide, small))
    # With one scale for all, the quiet outputs would be nothing but rounding.
    errors = np.abs(results - right).max(axis=1) / np.abs(right).max(axis=1)
    assert 0 < errors.max() < 0.1


def test_a_weight_that_something_else_reads_too_stays_in_float_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"], "first"),
        helper.make_node("MatMul", ["m", "w"], ["n"], "second"),
        helper.make_node("Add", ["n", "w"], ["y"], "also"),
    ]
    square = np.random.default_rng(5).standard_normal((32, 32))
    constants = [constant("a", W.T), constant("w", square)]
    wide = read_in(file_of(nodes, constants, [32, 16], tmp_path / "f.onnx"))
    with caplog.at_level("INFO"):
        small = in_precision(wide, PRESETS["int8-weights"])
    assert "1 of 1 projections in int8" in caplog.text
    assert "in float stay w (1,024, of Add)" in caplog.text
    types = {
        t.name: t.data_type for t in onnx.load_model_from_string(small.graph).graph.initializer
    }
    assert types["w"] == onnx.TensorProto.FLOAT and "a" not in types


def test_a_file_that_is_too_old_for_a_scale_for_each_channel_is_converted_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, constants, shape, _ = LAYOUTS["a matrix on the right"]
    old = read_in(file_of(nodes, constants, shape, tmp_path / "f.onnx", opset=11))
    small = in_precision(old, PRESETS["int8-weights"])
    assert opset_of(onnx.load_model_from_string(small.graph)) == 13
    x = np.ones(shape, np.float32)
    np.testing.assert_allclose(answer(small, x), answer(old, x), rtol=0.1, atol=1e-4)

    def cannot(model: onnx.ModelProto, version: int) -> None:
        raise RuntimeError("no adapter for Curious")

    monkeypatch.setattr(onnx.version_converter, "convert_version", cannot)
    with pytest.raises(ExportError, match=r"too old for a scale for each channel[\s\S]*opset 11"):
        in_precision(old, PRESETS["int8-weights"])


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    nodes, _, shape, _ = LAYOUTS["a matrix on the right"]
    bad = W.T.copy()
    bad[3, 4] = np.nan
    wide = read_in(file_of(nodes, [constant("w", bad)], shape, tmp_path / "f.onnx"))
    with pytest.raises(ExportError, match=r"NaN or infinity[\s\S]*found: w"):
        in_precision(wide, PRESETS["int8-weights"])


@pytest.mark.parametrize("words", [{"max_output_error": 0.1}, {"accept": "Ada: a toy"}])
def test_limits_of_a_candidate_are_refused_where_nothing_is_in_fewer_bits(
    words: dict[str, object], tmp_path: Path
) -> None:
    nodes, constants, shape, _ = LAYOUTS["a matrix on the right"]
    file = file_of(nodes, constants, shape, tmp_path / "f.onnx")
    with pytest.raises(SpecError, match="limits of the check are for a candidate"):
        stategate.adopt(file, tmp_path / "b", accept_pairs=True, **words)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.case("D8")
def test_activations_are_rounded_within_the_range_that_a_recording_has(tmp_path: Path) -> None:
    file = tmp_path / "f.onnx"
    nodes = [
        helper.make_node("If", ["loud"], ["y"], "choose", then_branch=side(W), else_branch=side(-W))
    ]
    file_of(nodes, [], [16, 4], file, extra=[helper.make_tensor_value_info("loud", 9, [])])
    x = np.random.default_rng(6).uniform(-3, 3, (40, 16, 4)).astype(np.float32)
    log = Episode({"x": x})
    options: Any = {"states": {"h": "h_out"}, "constants": {"loud": "true"}, "episode": log}
    wide = stategate.adopt(file, tmp_path / "wide", steps=20, **options)
    record = stategate.measure_ranges(wide, log)
    small = stategate.adopt(
        file, tmp_path / "small", steps=20, precision="int8", ranges=record, **options
    )
    model = onnx.load_model_from_string(small.read(small.manifest.step_graph.file))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (rounded,) = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert rounded.input[0] == "x"
    assert values[rounded.input[1]] == pytest.approx(np.abs(x).max() / 127, rel=1e-6)
    assert small.manifest.constants == () and wide.manifest.constants[0].name == "loud"
    receipt = small.manifest.verification
    assert receipt is not None and 0 < receipt.max_output_error < 0.05
    report = stategate.compare(wide, small, log, sealed=tmp_path / "sealed")
    assert report.passed and Bundle.open(tmp_path / "sealed").manifest.standing == "sealed"


def side(matrix: np.ndarray) -> onnx.GraphProto:
    """A branch with a weight of its own on the left of a product."""
    y = helper.make_tensor_value_info("inner", 1, [32, 4])
    return helper.make_graph(
        [helper.make_node("MatMul", ["w", "x"], ["inner"], "project")],
        "side",
        [],
        [y],
        [constant("w", matrix / LOUD[:, None])],
    )


def recurrent(path: Path, operator: str, gates: int) -> Path:
    """A recurrent node whose memory is its state; opset 17."""
    rng = np.random.default_rng(3)
    weights = [
        constant("W", 0.3 * rng.standard_normal((1, gates * 16, 16))),
        constant("R", 0.3 * rng.standard_normal((1, gates * 16, 16))),
        constant("B", 0.3 * rng.standard_normal((1, gates * 32))),
    ]
    cell = ["", "c"] if operator == "LSTM" else []
    inputs = ["x", "W", "R", "B", "", "h", *cell[1:]]
    outputs = ["y", "h_out", *(["c_out"] if cell else [])]
    names = ["h", *cell[1:]]
    ends = [helper.make_tensor_value_info(n, 1, [1, 1, 16]) for n in ["x", *names]]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, "cell", hidden_size=16)],
        "g",
        ends,
        [helper.make_tensor_value_info(n, 1, [None] * (4 if n == "y" else 3)) for n in outputs],
        weights,
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.case("D8")
@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_node_keeps_the_weights_of_its_memory_unless_a_plan_says_so(
    operator: str, gates: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = {"h": "h_out"} | ({"c": "c_out"} if operator == "LSTM" else {})
    file = recurrent(tmp_path / "cell.onnx", operator, gates)
    wide = adopt(file, Request({}, {}, {}, pairs)).candidate
    with caplog.at_level("INFO", "stategate"):
        usual = in_precision(wide, PRESETS["int8-weights"])
    assert "1 of 2 projections in int8" in caplog.text
    assert f"in float stay R ({gates * 256:,}, recurrence)" in caplog.text
    every = in_precision(wide, PrecisionPlan(weights="int8", keep_float=()))
    assert len(every.graph) < len(usual.graph) < len(wide.graph)
    feeds = {n: np.full(t.shape, 0.5, t.dtype) for n, t in wide.spec.graph_inputs().items()}
    right, results = (unoptimised(c.graph).run(None, feeds) for c in (wide, every))
    for a, b in zip(right, results, strict=True):
        np.testing.assert_allclose(b, a, atol=0.02)
    assert with_c(every).c_source


@pytest.mark.slow
@pytest.mark.case("D8")
def test_a_recurrent_file_in_int8_is_a_candidate_that_its_own_c_steps(tmp_path: Path) -> None:
    file = recurrent(tmp_path / "cell.onnx", "LSTM", 4)
    words = ["--precision", "int8-weights", "--engines", "onnxruntime,native"]
    out = tmp_path / "small"
    result = CliRunner().invoke(main, ["adopt", str(file), "--yes", *words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(out).manifest
    assert manifest.standing == "candidate" and manifest.native is not None
    assert manifest.verification is not None
    assert 0 < manifest.verification.max_output_error < 0.05
