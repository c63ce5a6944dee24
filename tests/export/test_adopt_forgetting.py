"""Files that forget in every step, or throw dice, are refused by the name of the node."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import TensorSpec
from stategate.contract.errors import GraphError, StatePairingError
from stategate.export.frontends.adopt import adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.pairing import Evidence, find_pairs

NOTHING = Request({}, {}, {}, {})
CASES = Path(__file__).parents[1] / "cases"
F = TensorProto.FLOAT


def _save(path: Path, nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, F, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, F, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.mark.case("B1")
def test_a_gru_that_begins_from_a_constant_in_every_step_is_named(tmp_path: Path) -> None:
    runpy.run_path(str(CASES / "graphs.py"))["main"](tmp_path)
    with pytest.raises(GraphError, match=r"GRU that gives y2, which begins from zero"):
        adopt(tmp_path / "half_hidden.onnx", NOTHING)


def _lstm(path: Path, frames: int | str, layout: int = 0) -> Path:
    """An LSTM with its state, and one over ``frames`` that is given its hidden state alone."""
    rng = np.random.default_rng(0)
    shape = [1, frames, 4] if layout else [frames, 1, 4]
    state = [1, 1, 4]
    return _save(
        path,
        [
            helper.make_node(
                "LSTM", ["x", "w", "r", "", "", "h", "c"], ["", "h_out", "c_out"], hidden_size=4
            ),
            helper.make_node(
                "LSTM",
                ["z", "w", "r", "", "", "h"],
                ["", "last"],
                hidden_size=4,
                name="second",
                layout=layout,
            ),
            helper.make_node("Add", ["last", "h_out"], ["y"]),
        ],
        [("x", [1, 1, 4]), ("z", shape), ("h", state), ("c", state)],
        [("y", state), ("h_out", state), ("c_out", state)],
        w=rng.standard_normal((1, 16, 4)).astype(np.float32),
        r=rng.standard_normal((1, 16, 4)).astype(np.float32),
    )


@pytest.mark.case("B1")
@pytest.mark.parametrize(("frames", "dims"), [(1, {}), ("frames", {"frames": 1})])
def test_half_of_an_lstm_that_begins_anew_is_named_also_where_its_time_is_pinned(
    frames, dims, tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=r"LSTM second, which begins from zeros"):
        adopt(_lstm(tmp_path / "a.onnx", frames), Request(dims, {}, {}, {}))


def test_a_recurrent_node_over_a_window_may_begin_anew(tmp_path: Path) -> None:
    adopt(_lstm(tmp_path / "a.onnx", 5), NOTHING)


DICE = {
    "normal": helper.make_node("RandomNormalLike", ["x"], ["r"]),
    "uniform": helper.make_node("RandomUniform", [], ["r"], shape=[1, 4], seed=3.0),
    "dropout": helper.make_node("Dropout", ["x", "half", "yes"], ["r"]),
}


def _dice(path: Path, kind: str) -> Path:
    nodes = [
        DICE[kind],
        helper.make_node("Add", ["h", "r"], ["h_out"]),
        helper.make_node("Tanh", ["h_out"], ["y"]),
    ]
    values = {"half": np.float32(0.5), "yes": kind == "dropout"}
    return _save(
        path, nodes, [("x", [1, 4]), ("h", [1, 4])], [("y", [1, 4]), ("h_out", [1, 4])], **values
    )


@pytest.mark.parametrize("kind", DICE)
def test_a_file_that_draws_random_numbers_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=f"random numbers[\\s\\S]*{DICE[kind].op_type}"):
        adopt(_dice(tmp_path / "a.onnx", kind), NOTHING)


@pytest.mark.case("B3")
def test_names_that_are_only_a_little_alike_make_no_state() -> None:
    inputs = {n: TensorSpec(n, (1, 4)) for n in ("x", "goal")}
    outputs = {n: TensorSpec(n, (1, 4)) for n in ("value", "goal_error")}
    with pytest.raises(StatePairingError, match="goal"):
        find_pairs(inputs, outputs, Evidence({"x", "goal"}, set()))
