from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from stategate.cli.main import main
from stategate.contract import Bundle, TensorSpec, canonical_json
from stategate.contract.errors import GraphError, ManifestError, StatePairingError
from stategate.contract.manifest import decode_manifest
from stategate.export.frontends.adopt import adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.pairing import find_pairs
from stategate.runtime import Session

CASES = Path(__file__).parents[1] / "cases"
NOTHING = Request({}, {}, {}, {})
F, I64 = TensorProto.FLOAT, TensorProto.INT64


def save(path: Path, nodes: list, inputs: list, outputs: list, **facts: str) -> Path:
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, facts)
    onnx.save(model, path)
    return path


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """y = h' = h + x * gain, with a named batch axis, an integer counter and a gain."""
    return save(
        tmp_path / "leaky.onnx",
        [
            ("Mul", ["x", "gain"], ["scaled"]),
            ("Add", ["h_in", "scaled"], ["h_out"]),
            ("Add", ["n", "n"], ["n_next"]),
            ("Identity", ["h_out"], ["y"]),
        ],
        [("x", F, ["batch", 3]), ("gain", F, []), ("h_in", F, ["batch", 3]), ("n", I64, [1])],
        [("y", F, ["batch", 3]), ("h_out", F, ["batch", 3]), ("n_next", I64, [1])],
        author="somebody",
    )


@pytest.mark.slow
def test_an_adopted_file_is_stepped_by_its_own_c(leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = ["--dim", "batch=1", "--const", "gain=0.5", "--yes", "--steps", "20", "--out", str(out)]
    words += ["--engines", "onnxruntime,native"]
    result = CliRunner().invoke(main, ["adopt", str(leaky), *words])
    assert result.exit_code == 0, result.output
    way = Bundle.open(out).manifest.way
    assert way is not None and way.way == "fused" and "hard gate" in way.why
    with Session.open(out, engine="native") as session:
        for _ in range(3):
            session.step(x=np.ones((1, 3), np.float32))
        np.testing.assert_array_equal(session.state("h_in"), np.full((1, 3), 1.5, np.float32))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--split", "read-write"], 2, "no state that a hard gate guards"),
        (["--split", "in-three"], 2, "in-three"),
    ],
)
def test_ways_that_an_adopted_file_cannot_go_are_refused(
    leaky: Path, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    words += ["--dim", "batch=1", "--const", "gain=0.5", "--yes", "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(main, ["adopt", str(leaky), *words])
    assert result.exit_code == code and says in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_states_are_found_axes_pinned_and_facts_kept(leaky: Path) -> None:
    adopted = adopt(leaky, Request({"batch": 1}, {}, {"gain": "0.5"}, {}))
    assert adopted.pairs == {"h_in": "h_out", "n": "n_next"} and adopted.pairing
    assert [t.name for t in adopted.candidate.spec.inputs] == ["x"]
    assert adopted.candidate.metadata == {"author": "somebody"}
    assert adopted.candidate.graph == leaky.read_bytes()


def test_an_adopted_bundle_carries_what_the_file_carried(leaky: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    arguments = ["adopt", str(leaky), "--dim", "batch=1", "--const", "gain=0.5", "--yes"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["state_bytes"] == 12 + 8
    with Session.open(out) as session:
        for _ in range(4):
            session.step(x=np.ones((1, 3), np.float32))
        assert session.state("h_in").tolist() == [[2.0, 2.0, 2.0]]
        assert session.state("n").tolist() == [0]
    assert Bundle.open(out).manifest.metadata["author"] == "somebody"


def test_found_pairs_wait_for_a_yes(leaky: Path, tmp_path: Path) -> None:
    arguments = ["adopt", str(leaky), "--dim", "batch=1", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "--yes" in result.output
    assert "state h_in is fed from h_out" in result.output
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("request_", "error", "finding"),
    [
        (NOTHING, GraphError, r"x\[batch, 3\]"),
        (Request({"batsch": 1}, {}, {}, {}), GraphError, "batch"),
        (Request({}, {"y": (1,)}, {}, {}), GraphError, "no such input"),
        (Request({}, {"x": (1, 4)}, {}, {}), GraphError, "cannot take this shape"),
        (Request({}, {"x": (1, 3, 1)}, {}, {}), GraphError, "cannot take this shape"),
        (Request({"batch": 1}, {}, {"gain": "loud"}, {}), GraphError, "cannot have this value"),
        (Request({"batch": 1}, {}, {}, {"h": "h_out"}), StatePairingError, "no input 'h'"),
        (Request({"batch": 1}, {}, {}, {"h_in": "h"}), StatePairingError, "no output 'h'"),
        (Request({"batch": 1}, {}, {}, {"n": "h_out"}), StatePairingError, "has to feed the other"),
        (
            Request({"batch": 1}, {}, {}, {"h_in": "h_out", "x": "h_out"}),
            StatePairingError,
            "two states are paired with one output",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_candidates(
    leaky: Path, request_: Request, error: type[Exception], finding: str
) -> None:
    with pytest.raises(error, match=finding):
        adopt(leaky, request_)


def test_a_cache_that_grows_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "kv.onnx"
    concat = helper.make_node("Concat", ["past", "x"], ["present"], axis=0)
    graph = helper.make_graph(
        [concat],
        "g",
        [helper.make_tensor_value_info(n, F, s) for n, s in (("x", [1, 4]), ("past", ["t", 4]))],
        [helper.make_tensor_value_info("present", F, ["u", 4])],
    )
    onnx.save(helper.make_model(graph, ir_version=9), path)
    with pytest.raises(StatePairingError, match="no constant-size state"):
        adopt(path, Request({"t": 8}, {}, {}, {"past": "present"}))


@pytest.mark.case("B3")
def test_a_cell_whose_only_output_is_its_state_needs_an_answer_beside_it(tmp_path: Path) -> None:
    path = save(
        tmp_path / "cell.onnx",
        [("Add", ["x", "h"], ["h_out"])],
        [("x", F, [1, 2]), ("h", F, [1, 2])],
        [("h_out", F, [1, 2])],
    )
    out = tmp_path / "b"
    arguments = ["adopt", str(path), "--state", "h=h_out", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "the model gives no output" in result.output
    assert "give it twice" in result.output and not out.exists()
    result = CliRunner().invoke(main, ["adopt", str(path), "--yes", "--out", str(out)])
    assert result.exit_code == 2 and "every output looks like a state" in result.output
    twice = save(
        path,
        [("Add", ["x", "h"], ["h_out"]), ("Identity", ["h_out"], ["y"])],
        [("x", F, [1, 2]), ("h", F, [1, 2])],
        [("y", F, [1, 2]), ("h_out", F, [1, 2])],
    )
    result = CliRunner().invoke(main, ["adopt", str(twice), *arguments[2:]])
    assert result.exit_code == 0, result.output
    with Session.open(out) as session:
        session.step(x=np.ones((1, 2), np.float32))
        assert session.step(x=np.ones((1, 2), np.float32))["y"].tolist() == [[2.0, 2.0]]


@pytest.mark.case("B3")
def test_audio_that_goes_in_and_out_is_no_memory(tmp_path: Path) -> None:
    runpy.run_path(str(CASES / "graphs.py"))["main"](tmp_path)
    out = tmp_path / "b"
    words = ["adopt", str(tmp_path / "audio_pair.onnx"), "--yes", "--out", str(out)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "input audio_in looks as if it were fed from audio_out" in result.stderr
    manifest = Bundle.open(out).manifest
    assert [s.name for s in manifest.states] == ["state_in"]
    assert [t.name for t in manifest.inputs] == ["audio_in", "gain"]
    audio, gain = np.ones((1, 64), np.float32), np.ones((1, 1), np.float32)
    heard = []
    with Session.open(out) as session:
        for _ in range(3):
            heard.append(session.step(audio_in=audio, gain=gain)["audio_out"][0, 0])
    np.testing.assert_allclose(heard, np.tanh([1.0, 1.5, 1.75]), rtol=1e-6)


@pytest.mark.case("B3")
def test_a_frame_that_is_given_back_is_no_memory_though_nothing_would_be_missing(
    tmp_path: Path,
) -> None:
    """The same kind where inputs and outputs would be left over: a score beside, an idle input."""
    path = save(
        tmp_path / "frames.onnx",
        [
            ("Add", ["frame_in", "lstm_h"], ["sum"]),
            ("Tanh", ["sum"], ["fresh"]),
            ("Identity", ["fresh"], ["lstm_h_next"]),
            ("Neg", ["fresh"], ["frame_out"]),
            ("ReduceMax", ["fresh"], ["score"]),
            ("Identity", ["idle_in"], ["idle_copy"]),
        ],
        [("frame_in", F, [1, 8]), ("idle_in", F, [1, 8]), ("lstm_h", F, [1, 8])],
        [
            ("frame_out", F, [1, 8]),
            ("score", F, [1, 1]),
            ("lstm_h_next", F, [1, 8]),
            ("idle_copy", F, [1, 8]),
        ],
    )
    assert adopt(path, NOTHING).pairs == {"lstm_h": "lstm_h_next"}


@pytest.mark.case("B3")
def test_a_manifest_without_outputs_or_inputs_is_no_manifest(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    for field, says in (("inputs", "takes no input"), ("outputs", "gives no output")):
        fields = json.loads(canonical_json(manifest)) | {field: []}
        with pytest.raises(ManifestError, match=says):
            decode_manifest(json.dumps(fields).encode())


def test_a_state_that_was_forgotten_beside_declared_ones_is_pointed_out(tmp_path: Path) -> None:
    path = save(
        tmp_path / "lstm.onnx",
        [("Add", ["x", "h"], ["hn"]), ("Add", ["x", "c"], ["cn"]), ("Add", ["hn", "cn"], ["y"])],
        [("x", F, [1, 2]), ("h", F, [1, 2]), ("c", F, [1, 2])],
        [("y", F, [1, 2]), ("hn", F, [1, 2]), ("cn", F, [1, 2])],
    )
    arguments = ["adopt", str(path), "--state", "h=hn", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "--state c=cn" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"), [("true", 0), ("0", 0), ("maybe", 2), ("nan", 2), ("1e300", 2)]
)
def test_a_boolean_input_can_be_fixed(tmp_path: Path, text: str, code: int) -> None:
    path = save(
        tmp_path / "m.onnx",
        [("Where", ["flag", "x", "h"], ["h_out"]), ("Identity", ["h_out"], ["y"])],
        [("x", F, [1, 2]), ("flag", TensorProto.BOOL, [1]), ("h", F, [1, 2])],
        [("y", F, [1, 2]), ("h_out", F, [1, 2])],
    )
    arguments = ["adopt", str(path), "--const", f"flag={text}", "--state", "h=h_out"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "b")])
    assert result.exit_code == code, result.output


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("q", F, [1, 2])
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "h"], ["h_out"]),
            helper.make_node("SequenceConstruct", ["h_out"], ["q"]),
        ],
        "g",
        [helper.make_tensor_value_info(n, F, [1, 2]) for n in ("x", "h")],
        [helper.make_tensor_value_info("h_out", F, [1, 2]), sequence],
    )
    onnx.save(helper.make_model(graph, ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(GraphError, match="no tensor"):
        adopt(tmp_path / "m.onnx", NOTHING)


def tensors(*names: str) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, (1, 2)) for name in names}


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    [
        (("x", "state"), ("y", "stateN"), {"state": "stateN"}),
        (("x", "h", "c"), ("y", "hn", "cn"), {"h": "hn", "c": "cn"}),
        (("x", "h_in", "c_in"), ("y", "h_out", "c_out"), {"h_in": "h_out", "c_in": "c_out"}),
        (("x", "past_ssm"), ("y", "present_ssm"), {"past_ssm": "present_ssm"}),
        (("mix", "conv_cache"), ("enh", "conv_cache_out"), {"conv_cache": "conv_cache_out"}),
    ],
)
def test_pairs_are_found_by_the_names_that_people_use(
    inputs: tuple[str, ...], outputs: tuple[str, ...], pairs: dict[str, str]
) -> None:
    assert find_pairs(tensors(*inputs), tensors(*outputs)) == (pairs, "by name")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("x",), ("y",)),
        (("x", "h"), ("y", "hn", "h_out")),
        (("h", "h_prev"), ("h_out",)),
        (("input",), ("output",)),
    ],
)
def test_what_is_in_doubt_is_listed_and_not_guessed(
    inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    with pytest.raises(StatePairingError, match="--state INPUT=OUTPUT"):
        find_pairs(tensors(*inputs), tensors(*outputs))


@pytest.mark.parametrize("raw", [b"", b"not onnx at all", b"\x08\x01"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(raw)
    with pytest.raises(GraphError):
        adopt(path, NOTHING)


def test_a_truncated_graph_is_refused_and_nothing_is_written(leaky: Path, tmp_path: Path) -> None:
    leaky.write_bytes(leaky.read_bytes()[:-20])
    out = tmp_path / "b"
    result = CliRunner().invoke(main, ["adopt", str(leaky), "--out", str(out)])
    assert result.exit_code == 2 and "GraphError" in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--dim", "batch"],
        ["--dim", "batch=x"],
        ["--dim", "batch=²"],
        ["--shape", "x=1,0"],
        ["--state", "a="],
    ],
)
def test_a_malformed_option_is_wrong_use(leaky: Path, tmp_path: Path, option: list[str]) -> None:
    arguments = ["adopt", str(leaky), *option, "--out", str(tmp_path / "b")]
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.slow
def test_adopting_needs_no_torch(leaky: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stategate.cli.main import main\n"
        f"main(['adopt', {str(leaky)!r}, '--dim', 'batch=1', '--yes', '--out', "
        f"{str(tmp_path / 'b')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
