"""Integers that steer a graph: asked for, drawn from where they may lie, or noted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from stategate.cli.main import main
from stategate.contract import Bundle, Episode, TensorSpec
from stategate.export.frontends.steering import choices

F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def saved(path: Path, nodes: list, inputs: list, weights: dict) -> Path:
    """y = h_next of a small memory, with more inputs than x and h."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", F, [1, 2]), value("h", F, [1, 2]), *(value(*i) for i in inputs)],
        [value("y", F, [1, 2]), value("h_next", F, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def branch(name: str, factor: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, F, [1, 2])
    return helper.make_graph([helper.make_node("Mul", ["h", factor], [name])], name, [], [out])


def with_branch(path: Path, condition: list[onnx.NodeProto], inputs: list) -> Path:
    """h' = x + (h / 2 or -h / 2), as ``steered`` says."""
    choice = helper.make_node(
        "If",
        ["steered"],
        ["kept"],
        name="mode_switch",
        then_branch=branch("kept_a", "half"),
        else_branch=branch("kept_b", "minus"),
    )
    after = [
        helper.make_node("Add", ["kept", "x"], ["h_next"]),
        helper.make_node("Tanh", ["h_next"], ["y"]),
    ]
    weights = {
        "half": np.float32(0.5),
        "minus": np.float32(-0.5),
        "seven": np.int64(7),
        "none": np.float32(0),
    }
    return saved(path, [*condition, choice, *after], inputs, weights)


@pytest.fixture
def by_mode(tmp_path: Path) -> Path:
    equal = helper.make_node("Equal", ["mode", "seven"], ["steered"])
    return with_branch(tmp_path / "m.onnx", [equal], [("mode", I64, [])])


@pytest.mark.case("B8")
@pytest.mark.parametrize("kind", ["integer", "boolean"])
def test_what_steers_a_branch_is_asked_for_and_every_remedy_works(
    by_mode: Path, tmp_path: Path, kind: str
) -> None:
    name = "mode"
    if kind == "boolean":
        nodes = [helper.make_node("Not", ["off"], ["steered"])]
        by_mode, name = with_branch(tmp_path / "b.onnx", nodes, [("off", B, [])]), "off"
    words = ["adopt", by_mode, "--state", "h=h_next", "--steps", 40, "--out", tmp_path / "out"]
    done = run(*words)
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"input {name!r} decides which branch" in done.output
    value = "7" if kind == "integer" else "true"
    assert f"--const {name}={value}" in done.output
    assert run(*words, "--const", f"{name}={value}").exit_code == 0
    steered = np.arange(40) % 10 if kind == "integer" else np.arange(40) % 2 == 0
    log = Episode({"x": np.ones((40, 1, 2), np.float32), name: steered})
    (tmp_path / "log.npz").write_bytes(log.to_bytes())
    done = run(*words, "--episode", tmp_path / "log.npz")
    assert done.exit_code == 0 and "only one branch" not in done.output


@pytest.mark.case("B8")
def test_a_branch_that_was_never_taken_is_noted_in_the_receipt_and_printed(
    by_mode: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["adopt", by_mode, "--state", "h=h_next", "--steps", 20, "--out", out]
    done = run(*words, "--range", "mode=0:3")
    says = "only one branch of 'mode_switch' was seen, that for steered = false"
    assert done.exit_code == 0 and says in done.output
    for verb in ("inspect", "verify"):
        assert says in run(verb, out).output
    done = run(*words, "--range", "mode=6:7")
    assert done.exit_code == 0 and "only one branch" not in done.output


@pytest.mark.case("B8")
def test_a_branch_that_numbers_steer_is_noted_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "none"], ["steered"]),
    ]
    path, out = with_branch(tmp_path / "m.onnx", nodes, []), tmp_path / "out"
    words = ["adopt", path, "--state", "h=h_next", "--steps", 60, "--out", out]
    assert "only one branch" not in run(*words).output
    done = run(*words, "--range", "x=1:2")
    assert "that for steered = true" in done.output
    receipt = Bundle.open(out).manifest.verification
    assert receipt is not None and len(receipt.notes) == 1


@pytest.mark.case("B8")
def test_random_indices_reach_every_row_that_is_looked_up_and_no_other(tmp_path: Path) -> None:
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    nodes = [
        helper.make_node("Unsqueeze", ["word", "zero"], ["at"]),
        helper.make_node("Gather", ["table", "at"], ["row"], axis=0),
        helper.make_node("Add", ["row", "x"], ["sum"]),
        helper.make_node("Add", ["sum", "h"], ["h_next"]),
        helper.make_node("Tanh", ["h_next"], ["y"]),
    ]
    weights = {"table": table, "zero": np.array([0], np.int64)}
    path = saved(tmp_path / "m.onnx", nodes, [("word", I64, [])], weights)
    out = tmp_path / "out"
    done = run("adopt", path, "--state", "h=h_next", "--steps", 200, "--out", out)
    assert done.exit_code == 0, done.output
    golden = Bundle.open(out).golden()
    assert golden is not None
    assert set(Counter(golden.inputs["word"].tolist())) == {0, 1, 2, 3, 4}
    done = run(
        "adopt", path, "--state", "h=h_next", "--range", "word=0:9", "--out", tmp_path / "other"
    )
    assert done.exit_code == 1 and "fails on the inputs of step" in done.output
    assert "--range x=0:1" in done.output


@pytest.mark.case("B8")
def test_what_is_compared_with_constants_may_be_they_or_their_neighbours(by_mode: Path) -> None:
    model = onnx.load(by_mode)
    assert choices(model, [TensorSpec("mode", (), "int64")])["mode"] == [7, 6, 8, 0, 1]
