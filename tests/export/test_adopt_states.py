"""What ONNX files keep as state beside one float tensor, what they start with, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from stategate.cli.main import main
from stategate.contract import Bundle, TensorSpec
from stategate.contract.errors import GraphError, StatePairingError
from stategate.export.frontends.adopt import OnnxReference, adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.pairing import find_pairs
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.runtime import Session

F, H = TensorProto.FLOAT, TensorProto.FLOAT16
I64, BOOL = TensorProto.INT64, TensorProto.BOOL
NOTHING = Request({}, {}, {}, {})


def save(path: Path, nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        [helper.make_node(op, taken, given, **more) for op, taken, given, more in nodes],
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """The mean of the last four inputs: a ring, where it is written next, whether it is full."""
    return save(
        tmp_path / "ring.onnx",
        [
            ("Unsqueeze", ["at", "zero"], ["index"], {}),
            ("ScatterND", ["ring", "index", "x"], ["ring_out"], {}),
            ("Add", ["at", "one"], ["after"], {}),
            ("Mod", ["after", "four"], ["at_out"], {}),
            ("Equal", ["at_out", "zero"], ["wrapped"], {}),
            ("Or", ["full", "wrapped"], ["full_out"], {}),
            ("ReduceMean", ["ring_out"], ["mean"], {"axes": [0], "keepdims": 1}),
            ("Where", ["full_out", "mean", "x"], ["y"], {}),
        ],
        [("x", F, [1, 3]), ("ring", F, [4, 3]), ("at", I64, [1]), ("full", BOOL, [1])],
        [("y", F, [1, 3]), ("ring_out", F, [4, 3]), ("at_out", I64, [1]), ("full_out", BOOL, [1])],
        zero=np.array([0]),
        one=np.array([1]),
        four=np.array([4]),
    )


@pytest.mark.slow
def test_a_ring_buffer_with_its_counter_and_flag_is_adopted(ring: Path, tmp_path: Path) -> None:
    result = cli("adopt", ring, "--yes", "--out", tmp_path / "b", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["state_bytes"] == 4 * 3 * 4 + 8 + 1
    x = np.random.default_rng(0).standard_normal((50, 1, 3)).astype(np.float32)
    with Session.open(tmp_path / "b") as session:
        for t in range(50):
            y = session.step(x=x[t])["y"]
            wanted = x[t - 3 : t + 1].mean(axis=0) if t >= 3 else x[t]
            np.testing.assert_allclose(y, wanted, atol=1e-6)
            assert session.state("at").tolist() == [(t + 1) % 4]
            assert session.state("full").tolist() == [t >= 3]
    assert cli("verify", tmp_path / "b").exit_code == 0


def test_states_without_axes_are_adopted(tmp_path: Path) -> None:
    path = save(
        tmp_path / "count.onnx",
        [("Add", ["n", "one"], ["n_out"], {}), ("Add", ["x", "n_out"], ["y"], {})],
        [("x", I64, [2]), ("n", I64, [])],
        [("y", I64, [2]), ("n_out", I64, [])],
        one=np.array(1),
    )
    assert cli("adopt", path, "--yes", "--out", tmp_path / "b").exit_code == 0
    with Session.open(tmp_path / "b") as session:
        for expected in (1, 2, 3):
            assert session.step(x=np.zeros(2, np.int64))["y"].tolist() == [expected] * 2
        assert session.state("n").shape == ()


def test_a_state_kept_in_half_precision_is_adopted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    w, u = ((rng.standard_normal(s) * 0.3).astype(np.float16) for s in ((3, 8), (8, 8)))
    path = save(
        tmp_path / "half.onnx",
        [
            ("MatMul", ["x", "w"], ["a"], {}),
            ("MatMul", ["h_in", "u"], ["b"], {}),
            ("Add", ["a", "b"], ["c"], {}),
            ("Tanh", ["c"], ["h_out"], {}),
            ("Cast", ["h_out"], ["y"], {"to": F}),
        ],
        [("x", H, [1, 3]), ("h_in", H, [1, 8])],
        [("y", F, [1, 8]), ("h_out", H, [1, 8])],
        w=w,
        u=u,
    )
    assert (
        cli("adopt", path, "--yes", "--init", "h_in=0.25", "--out", tmp_path / "b").exit_code == 0
    )
    assert Bundle.open(tmp_path / "b").manifest.state_bytes == 16
    h = np.full((1, 8), 0.25)
    with Session.open(tmp_path / "b") as session:
        for x in rng.standard_normal((100, 1, 3)).astype(np.float16):
            h = np.tanh(x.astype(np.float64) @ w + h @ u).astype(np.float16).astype(np.float64)
            session.step(x=x)
            assert session.state("h_in").dtype == np.float16
            np.testing.assert_allclose(session.state("h_in"), h, atol=4e-3)


def test_states_start_and_restart_with_what_init_says(ring: Path, tmp_path: Path) -> None:
    start = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "ring.npy", np.asfortranarray(start))
    inits = ["--init", f"ring={tmp_path / 'ring.npy'}", "--init", "at=2", "--init", "full=true"]
    result = cli("adopt", ring, "--yes", *inits, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    with Session.open(tmp_path / "b") as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.state("ring"), start)
            y = session.step(x=np.zeros((1, 3), np.float32))["y"]
            np.testing.assert_allclose(y, (start.sum(axis=0) - start[2])[None] / 4)
            assert session.state("at").tolist() == [3]
            session.reset()


@pytest.mark.parametrize(
    ("init", "finding"),
    [
        ("x=1", "no state"),
        ("ring=loud", "one finite float32"),
        ("ring=nan", "one finite float32"),
        ("at=0.5", "one finite int64"),
        ("at=9999999999999999999", "one finite int64"),
        ("full=2", "one finite bool"),
        ("ring={}/short.npy", r"[4, 3]"),
        ("ring={}/wide.npy", "float64"),
        ("ring={}/nan.npy", "not finite"),
        ("ring={}/pickled.npy", "pickle"),
        ("ring={}/empty.npy", "empty.npy"),
        ("ring={}/missing.npy", "No such file"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    ring: Path, tmp_path: Path, init: str, finding: str
) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 3), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    np.save(tmp_path / "nan.npy", np.full((4, 3), np.nan, np.float32))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    result = cli("adopt", ring, "--yes", "--init", init.format(tmp_path), "--out", tmp_path / "b")
    assert result.exit_code == 2 and finding in result.output
    assert not (tmp_path / "b").exists()


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    [
        # One output fits, and x is left to be fed.
        (
            specs(x=(1, 3), alpha=(1, 8)),
            specs(y=(1, 2), omega=(1, 8)),
            {"alpha": "omega"},
        ),
        # Two states that shapes keep apart.
        (
            specs(x=(1, 3), alpha=(1, 8), beta=(2, 8)),
            specs(omega=(1, 8), psi=(2, 8), y=(1, 1)),
            {"alpha": "omega", "beta": "psi"},
        ),
    ],
)
def test_names_without_likeness_are_paired_where_shapes_allow_one_way(
    inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], pairs: dict[str, str]
) -> None:
    assert find_pairs(inputs, outputs) == (pairs, "by shape alone")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        # Either may be the state.
        (specs(x=(1, 3), alpha=(1, 8)), specs(y=(1, 3), omega=(1, 8))),
        # Two outputs fit.
        (specs(x=(1, 3), alpha=(1, 8)), specs(y=(1, 8), omega=(1, 8))),
        # Two inputs fit.
        (specs(x=(1, 3), alpha=(1, 8), beta=(1, 8)), specs(y=(1, 2), omega=(1, 8))),
    ],
)
def test_shapes_that_allow_two_ways_decide_nothing(
    inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]
) -> None:
    with pytest.raises(StatePairingError, match="alpha -> "):
        find_pairs(inputs, outputs)


def test_a_pair_found_by_shape_alone_says_so_and_waits_for_a_yes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [
            ("MatMul", ["x", "w"], ["a"], {}),
            ("Add", ["a", "alpha"], ["omega"], {}),
            ("ReduceSum", ["omega"], ["y"], {}),
        ],
        [("x", F, [1, 3]), ("alpha", F, [1, 8])],
        [("y", F, [1, 1]), ("omega", F, [1, 8])],
        w=np.ones((3, 8), np.float32),
    )
    result = cli("adopt", path, "--out", tmp_path / "b")
    assert result.exit_code == 2
    assert "state alpha is fed from omega (float32 [1, 8], by shape alone)" in result.output
    assert cli("adopt", path, "--yes", "--out", tmp_path / "b").exit_code == 0


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past", "present"),
        ("past_key_values.0.key", "present.0.key"),
        ("kv_in", "updated"),
        ("memory_in", "memory_out"),
    ],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_cache_that_grows_is_refused_by_name(
    tmp_path: Path, past: str, present: str, declared: bool
) -> None:
    path = save(
        tmp_path / "kv.onnx",
        [
            ("Concat", [past, "x"], [present], {"axis": 2}),
            ("ReduceSum", [present], ["y"], {"keepdims": 1}),
            ("Add", ["n", "n"], ["n_out"], {}),
        ],
        [("x", F, [1, 2, 1, 4]), (past, F, [1, 2, "t", 4]), ("n", I64, [1])],
        [("y", F, [1, 1, 1, 1]), (present, F, [1, 2, "u", 4]), ("n_out", I64, [1])],
    )
    states = {past: present} if declared else {}
    with pytest.raises(StatePairingError, match="grows") as refusal:
        adopt(path, Request({"t": 8}, {}, {}, states))
    told = str(refusal.value)
    assert f"input {past!r} comes back larger as {present!r}" in told
    assert "[1, 2, 8, 4] in, [1, 2, 9, 4] out" in told and "cache of fixed size" in told


def test_an_ordinary_input_may_be_smaller_than_an_output_of_its_name(tmp_path: Path) -> None:
    path = save(
        tmp_path / "up.onnx",
        [
            ("Add", ["audio_in", "h"], ["h_out"], {}),
            ("Concat", ["h_out", "audio_in"], ["audio_out"], {"axis": 1}),
        ],
        [("audio_in", F, [1, 4]), ("h", F, [1, 4])],
        [("audio_out", F, [1, 8]), ("h_out", F, [1, 4])],
    )
    with pytest.raises(StatePairingError, match="declare the states"):
        adopt(path, NOTHING)
    assert adopt(path, Request({}, {}, {}, {"h": "h_out"})).pairs == {"h": "h_out"}


def test_a_state_whose_shape_depends_on_what_it_saw_is_refused(tmp_path: Path) -> None:
    path = save(
        tmp_path / "events.onnx",
        [
            ("Cast", ["x"], ["on"], {"to": BOOL}),
            ("Compress", ["x", "on"], ["new"], {"axis": 0}),
            ("Concat", ["h", "new"], ["h_out"], {"axis": 0}),
            ("ReduceSum", ["h_out"], ["y"], {"keepdims": 1}),
        ],
        [("x", F, [2]), ("h", F, ["n"])],
        [("y", F, [1]), ("h_out", F, ["m"])],
    )
    adopted = adopt(path, Request({"n": 4}, {}, {}, {"h": "h_out"}))
    candidate = adopted.candidate
    with pytest.raises(GraphError, match="'h_out' changes its shape from call to call"):
        seal(tmp_path / "b", candidate, OnnxReference(candidate), random_episode(candidate.spec, 9))
    assert not (tmp_path / "b").exists()


def test_a_model_without_state_learns_that_it_needs_no_bundle(tmp_path: Path) -> None:
    path = save(
        tmp_path / "plain.onnx",
        [("ReduceSum", ["x"], ["y"], {})],
        [("x", F, [1, 64, 21])],
        [("y", F, [1, 1, 1])],
    )
    with pytest.raises(StatePairingError, match="a model without state needs no stategate"):
        adopt(path, NOTHING)


def test_an_input_that_is_handed_back_unchanged_is_no_state(tmp_path: Path) -> None:
    # A mask that went in as False for ever would silence the model.
    path = save(
        tmp_path / "masked.onnx",
        [
            ("Identity", ["mask"], ["mask_out"], {}),
            ("Add", ["x", "h"], ["h_out"], {}),
            ("Where", ["mask", "h_out", "x"], ["y"], {}),
        ],
        [("x", F, [1, 3]), ("mask", BOOL, [1, 3]), ("h", F, [1, 3])],
        [("y", F, [1, 3]), ("h_out", F, [1, 3]), ("mask_out", BOOL, [1, 3])],
    )
    adopted = adopt(path, NOTHING)
    assert adopted.pairs == {"h": "h_out"} and "mask" not in adopted.lookalikes


@pytest.mark.slow
def test_facts_of_the_file_are_kept_and_shown_without_what_a_terminal_obeys(
    ring: Path, tmp_path: Path
) -> None:
    model = onnx.load(ring)
    facts = {"joint_names": '["hip", "knee"]', "note": "a\n\x1b[2Jb", "long": "z" * 5000}
    helper.set_model_props(model, facts)
    onnx.save(model, ring)
    assert cli("adopt", ring, "--yes", "--out", tmp_path / "b").exit_code == 0
    assert Bundle.open(tmp_path / "b").manifest.metadata == facts
    shown = cli("inspect", tmp_path / "b").stdout
    assert 'fact         joint_names: ["hip", "knee"]\n' in shown
    assert "\x1b" not in shown and r"note: a\n\x1b[2Jb" in shown and "z" * 201 not in shown
    told = json.loads(cli("inspect", tmp_path / "b", "--json").stdout)
    assert told["metadata"] == facts
