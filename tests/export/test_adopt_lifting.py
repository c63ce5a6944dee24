"""Memory that hides between the frames of one call is named, and becomes states on request."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode, TensorSpec
from stategate.contract.errors import GraphError, StatePairingError
from stategate.export.frontends.lifting import probe
from stategate.export.frontends.lifting.find import Question, as_stream
from stategate.export.frontends.pairing import find_pairs
from stategate.runtime import Session

CASES = Path(__file__).parents[1] / "cases"
F = TensorProto.FLOAT
END = np.iinfo(np.int64).max


class Stack:
    """A random graph over ``x`` of shape ``(1, channels, T)``; every layer keeps that layout."""

    def __init__(self, seed: int, channels: int = 4) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.value, self.channels, self.inputs = "x", channels, channels

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.4, shape).astype(np.float32))

    def constant(self, array: object) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}", *[f"v{len(self.nodes)}.{i}" for i in range(1, outputs)]]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def conv(self) -> None:
        """Causal, with its padding inside, or in a Pad, or on both sides and cut off behind."""
        kernel, dilation = int(self.rng.integers(2, 5)), int(self.rng.integers(1, 4))
        reach, form = (kernel - 1) * dilation, self.rng.integers(3)
        weights = [self.weight(self.channels, self.channels, kernel), self.weight(self.channels)]
        value, pads = self.value, [reach, 0]
        if form == 1:
            value, pads = self.node("Pad", value, self.constant([0, 0, reach, 0, 0, 0])), [0, 0]
            value = self.node("Tanh", value)  # the padding goes through what follows
        if form == 2:
            pads = [reach, reach]
        value = self.node("Conv", value, *weights, dilations=[dilation], pads=pads)
        if form == 2:
            bounds = [self.constant([n]) for n in (0, -reach, 2)]
            value = self.node("Slice", value, *bounds)
        self.value = value

    def recurrent(self, kind: str, gates: int) -> None:
        hidden = int(self.rng.integers(2, 6))
        turned = self.node("Transpose", self.value, perm=[2, 0, 1])
        weights = [self.weight(1, gates * hidden, n) for n in (self.channels, hidden)]
        bias = self.weight(1, 2 * gates * hidden)
        start = ["", self.weight(1, 1, hidden)] if self.rng.integers(2) else []
        every = self.node(kind, turned, *weights, bias, *start, hidden_size=hidden)
        rows = self.node("Reshape", every, self.constant([-1, hidden]))
        mixed = self.node("MatMul", rows, self.weight(hidden, self.channels))
        back = self.node("Unsqueeze", mixed, self.constant([0]))
        self.value = self.node("Transpose", back, perm=[0, 2, 1])

    def gru(self) -> None:
        self.recurrent("GRU", 3)

    def lstm(self) -> None:
        self.recurrent("LSTM", 4)

    def residual(self) -> None:
        before = self.value
        [self.conv, self.gru][self.rng.integers(2)]()
        self.value = self.node("Add", self.node("Relu", self.value), before)

    def total(self) -> None:
        small = self.node("Mul", self.value, self.constant(np.float32(0.02)))
        self.value = self.node(
            "CumSum", small, self.constant(2), exclusive=int(self.rng.integers(2))
        )

    def pool(self) -> None:
        kind = ["MaxPool", "AveragePool"][self.rng.integers(2)]
        more = {"count_include_pad": 1} if kind == "AveragePool" else {}
        self.value = self.node(kind, self.value, kernel_shape=[3], pads=[2, 0], **more)

    def norm(self) -> None:
        turned = self.node("Transpose", self.value, perm=[0, 2, 1])
        scale = [self.weight(self.channels), self.weight(self.channels)]
        self.value = self.node(
            "Transpose", self.node("LayerNormalization", turned, *scale), perm=[0, 2, 1]
        )

    def last(self) -> None:
        self.value = self.node("Gather", self.value, self.constant(-1), axis=2)

    def model(self, rank: int = 3) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [self.value], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "stack",
            [helper.make_tensor_value_info("x", F, [1, self.inputs, "T"])],
            [helper.make_tensor_value_info("y", F, [None] * rank)],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def run(model: onnx.ModelProto) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def in_steps(
    model: onnx.ModelProto, x: np.ndarray, axis: int, hop: int = 1
) -> Iterator[np.ndarray]:
    """Answers of the lifted graph to one piece after another."""
    question = Question({"T": hop} if hop > 1 else {}, {}, {}, {"x": axis})
    stream = as_stream(model, question)
    assert not stream.obstacles, stream.obstacles
    step = run(stream.model)
    states = {lift.state.name: lift.initial for lift in stream.lifts}
    for start in range(0, x.shape[axis], stream.hop):
        piece = np.take(x, range(start, start + stream.hop), axis)
        results = step({"x": piece, **states})
        states = {lift.state.name: results[lift.state.next_name] for lift in stream.lifts}
        yield results["y"]


def assert_streams(model: onnx.ModelProto, x: np.ndarray, axis: int, hop: int = 1) -> None:
    whole = run(model)({"x": x})["y"]
    streamed = list(in_steps(model, x, axis, hop))
    answer = np.concatenate(streamed, axis) if whole.ndim == x.ndim else streamed[-1]
    np.testing.assert_allclose(answer, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


LAYERS = ["conv", "gru", "lstm", "residual", "total", "pool", "norm"]


@pytest.mark.parametrize("seed", range(12))
def test_a_random_stack_streams_as_it_answers_to_the_whole(seed: int) -> None:
    stack = Stack(seed)
    for name in stack.rng.choice(LAYERS, stack.rng.integers(1, 5)):
        getattr(stack, name)()
    once = bool(stack.rng.integers(2))
    if once:
        stack.last()
    x = np.random.default_rng(seed).standard_normal((1, 4, 42)).astype(np.float32)
    assert_streams(stack.model(2 if once else 3), x, 2, hop=int(stack.rng.choice([1, 2, 7])))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_any_random_stack_streams_as_it_answers_to_the_whole(seed: int) -> None:
    test_a_random_stack_streams_as_it_answers_to_the_whole(seed)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    runpy.run_path(str(CASES / "graphs.py"))["main"](folder)
    return folder


@pytest.mark.case("B2")
def test_a_file_over_a_time_axis_is_offered_to_be_lifted_and_streams_then(
    cases: Path, tmp_path: Path
) -> None:
    file, out = cases / "all_hidden.onnx", tmp_path / "bundle"
    words = ["adopt", str(file), "--out", str(out)]
    refused = CliRunner().invoke(main, [*words, "--dim", "frames=1"])
    assert refused.exit_code == 2 and "--lift" in refused.output
    assert "GRU that gives y1" in refused.output and "GRU that gives y2" in refused.output
    shown = CliRunner().invoke(main, [*words, "--lift"])
    assert shown.exit_code == 2 and "--yes" in shown.output and not out.exists()
    assert "state y1.h keeps its hidden state (float32 [1, 1, 8], 32 bytes)" in shown.output
    accepted = CliRunner().invoke(main, [*words, "--lift", "--yes", "--steps", "60"])
    assert accepted.exit_code == 0, accepted.output
    assert "against the untouched file over whole sequences" in accepted.output
    x = np.random.default_rng(1).standard_normal((50, 1, 4)).astype(np.float32)
    whole = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0]
    with Session.open(out) as session:
        for _ in range(2):
            session.reset()
            streamed = [session.step(x=x[t : t + 1])["y"].copy() for t in range(50)]
            np.testing.assert_allclose(np.concatenate(streamed), whole, atol=1e-5)
    original = Bundle.open(out).path / "adopted" / "all_hidden.onnx"
    assert original.read_bytes() == file.read_bytes()


@pytest.mark.case("B1")
def test_the_hidden_one_of_two_grus_is_lifted_next_to_the_declared_one(
    cases: Path, tmp_path: Path
) -> None:
    bundle = stategate.adopt(
        cases / "half_hidden.onnx", tmp_path / "b", lift=True, accept_pairs=True, steps=60
    )
    assert [s.name for s in bundle.manifest.states] == ["h1", "y2.h"]


def test_a_lifted_recording_is_held_against_the_file_over_all_of_it(tmp_path: Path) -> None:
    stack = Stack(5)
    stack.conv()
    stack.gru()
    x = np.random.default_rng(2).standard_normal((40, 1, 4, 1)).astype(np.float32)
    bundle = stategate.adopt(
        stack.model(),
        tmp_path / "b",
        lift=True,
        accept_pairs=True,
        steps=40,
        episode=Episode({"x": x}),
    )
    receipt = bundle.manifest.verification
    assert receipt is not None and receipt.inputs.kind == "recording"
    assert receipt.max_output_error is not None and receipt.max_output_error < 1e-5
    assert "whole sequences" in receipt.reference


def _obstacle(kind: str) -> onnx.ModelProto:
    stack, axis = Stack(0), {"axis": 2}
    if kind == "GRU":
        turned = stack.node("Transpose", "x", perm=[2, 0, 1])
        weights = [stack.weight(2, 6, 4), stack.weight(2, 6, 2)]
        stack.value = stack.node("GRU", turned, *weights, hidden_size=2, direction="bidirectional")
    elif kind == "Conv":
        stack.value = stack.node("Conv", "x", stack.weight(4, 4, 3), pads=[1, 1])
    elif kind == "Pad":
        stack.value = stack.node("Pad", "x", stack.constant([0, 0, 2, 0, 0, 0]), mode="reflect")
    elif kind == "CumSum":
        stack.value = stack.node("CumSum", "x", stack.constant(2), reverse=1)
    elif kind == "Softmax":
        stack.value = stack.node("Softmax", "x", **axis)
    elif kind == "ReduceMean":
        stack.value = stack.node("Sub", "x", stack.node("ReduceMean", "x", axes=[2]))
    elif kind == "InstanceNormalization":
        stack.value = stack.node(kind, "x", stack.weight(4), stack.weight(4))
    elif kind == "MatMul":
        turned = stack.node("Transpose", "x", perm=[0, 2, 1])
        stack.value = stack.node("MatMul", turned, "x")
    elif kind == "Slice":
        stack.value = stack.node("Slice", "x", *[stack.constant([n]) for n in (1, END, 2)])
    elif kind == "Add":
        stack.value = stack.node(
            "Add", "x", stack.node("Gather", "x", stack.constant([-1]), **axis)
        )
    elif kind == "Mul":
        shape = stack.node("Shape", "x")
        length = stack.node("Cast", stack.node("Gather", shape, stack.constant(2)), to=F)
        stack.value = stack.node("Mul", "x", length)
    elif kind == "Reshape":
        stack.value = stack.node("Reshape", "x", stack.constant([1, -1]))
    return stack.model({"GRU": 4, "Reshape": 2}.get(kind, 3))


@pytest.mark.case("B2")
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("GRU", "is bidirectional"),
        ("Conv", "reads 1 frame of the future"),
        ("Pad", "pads with frames of the sequence itself"),
        ("CumSum", "sums from the end"),
        ("Softmax", "normalises over all frames"),
        ("ReduceMean", "reduces over all frames"),
        ("InstanceNormalization", "normalises over all frames"),
        ("MatMul", "compares every frame with every other"),
        ("Slice", "leaves out the first 1 frames"),
        ("Add", "brings the end of the sequence into every frame"),
        ("Mul", "depends on the length of the sequence"),
        ("Reshape", "mixes frames with another axis"),
    ],
)
def test_what_looks_at_the_future_is_refused_by_node_and_reason(
    kind: str, why: str, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    with pytest.raises(GraphError, match=f"{kind} that gives v\\d+ {why}"):
        stategate.adopt(_obstacle(kind), out, lift=True, accept_pairs=True, time_axes={"x": 2})
    assert not out.exists()


def _scan_or_loop(kind: str, rounds: str = "rounds") -> onnx.ModelProto:
    """A leaky mean ``h = 0.9 h + x`` and ``y = h + 0.5``, one round a frame of ``x`` ``(T, 3)``."""
    value = helper.make_tensor_value_info
    leak = [numpy_helper.from_array(np.array(n, np.float32), f"k{n}") for n in (0.9, 0.5)]
    inner = [
        helper.make_node("Mul", ["h", "k0.9"], ["m"]),
        helper.make_node("Add", ["m", "frame"], ["h_next"]),
        helper.make_node("Add", ["h_next", "k0.5"], ["out"]),
    ]
    outs = [value("h_next", F, [3]), value("out", F, [3])]
    start = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "start")
    if kind == "Scan":
        body = helper.make_graph(
            inner, "body", [value("h", F, [3]), value("frame", F, [3])], outs, leak
        )
        nodes = [
            helper.make_node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)
        ]
        constants = [start]
    else:
        inner = [helper.make_node("Gather", ["x", "i"], ["frame"]), *inner]
        inner += [helper.make_node("Identity", ["go"], ["on"])]
        ins = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])]
        body = helper.make_graph(
            inner,
            "body",
            [*ins, value("h", F, [3])],
            [value("on", TensorProto.BOOL, []), *outs],
            leak,
        )
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["rounds"]),
            helper.make_node("Loop", [rounds, "", "start"], ["last", "y"], body=body),
        ]
        constants = [
            start,
            *(numpy_helper.from_array(np.array(n), s) for s, n in (("zero", 0), ("five", 5))),
        ]
    graph = helper.make_graph(
        nodes, "g", [value("x", F, ["T", 3])], [value("y", F, [None, 3])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("kind", ["Scan", "Loop"])
@pytest.mark.parametrize("hop", [1, 3])
def test_what_a_scan_or_a_loop_over_frames_carries_is_lifted(kind: str, hop: int) -> None:
    x = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    assert_streams(_scan_or_loop(kind), x, 0, hop)


def test_a_loop_with_its_own_number_of_rounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="another number of rounds than there are frames"):
        stategate.adopt(
            _scan_or_loop("Loop", "five"), tmp_path / "b", lift=True, time_axes={"x": 0}
        )


def test_a_strided_stack_takes_as_many_frames_a_step_as_its_strides_ask_for() -> None:
    stack = Stack(0)
    for stride in (2, 3):
        weight = stack.weight(4, 4, stride)
        stack.value = stack.node("Conv", stack.value, weight, strides=[stride])
    model = stack.model()
    question = Question({}, {}, {}, {"x": 2})
    assert as_stream(model, question).hop == 6
    with pytest.raises(GraphError, match="--dim T=6"):
        as_stream(model, Question({"T": 4}, {}, {}, {"x": 2}))


def _explicit_gru(hidden_conv: bool) -> onnx.ModelProto:
    """A GRU with its state among inputs and outputs; a causal convolution in front forgets."""
    stack = Stack(3)
    if hidden_conv:
        stack.value = stack.node("Conv", "x", stack.weight(4, 4, 3), pads=[2, 0])
    turned = stack.node("Transpose", stack.value, perm=[2, 0, 1])
    weights = [stack.weight(1, 12, 4), stack.weight(1, 12, 4)]
    start = ["", "", "first"]
    nodes = [helper.make_node("GRU", [turned, *weights, *start], ["all", "17"], hidden_size=4)]
    nodes += [helper.make_node("Tanh", ["all"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*stack.nodes, *nodes],
        "g",
        [value("x", F, [1, 4, "T"]), value("first", F, [1, 1, 4])],
        [value("y", F, [None] * 4), value("17", F, [1, 1, 4])],
        stack.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.case("B4")
def test_a_state_without_a_telling_name_is_found_by_the_node_that_carries_it(
    tmp_path: Path,
) -> None:
    model = _explicit_gru(hidden_conv=False)
    bundle = stategate.adopt(model, tmp_path / "b", dims={"T": 1}, accept_pairs=True, steps=20)
    assert [(s.name, s.next_name) for s in bundle.manifest.states] == [("first", "17")]


@pytest.mark.slow
@pytest.mark.case("B1")
def test_a_convolution_that_forgets_next_to_a_declared_state_is_refused_and_lifted(
    tmp_path: Path,
) -> None:
    model, out = _explicit_gru(hidden_conv=True), tmp_path / "b"
    with pytest.raises(GraphError, match=r"Conv that gives v0: state[\s\S]*add --lift"):
        stategate.adopt(model, out, dims={"T": 1}, accept_pairs=True, steps=20)
    assert not out.exists()
    bundle = stategate.adopt(model, out, lift=True, accept_pairs=True, steps=20)
    assert [s.name for s in bundle.manifest.states] == ["first", "v0.history"]


def test_a_window_that_is_one_step_gets_a_note_of_what_its_edge_forgets(tmp_path: Path) -> None:
    model = _explicit_gru(hidden_conv=True)
    bundle = stategate.adopt(model, tmp_path / "b", dims={"T": 6}, accept_pairs=True, steps=20)
    receipt = bundle.manifest.verification
    assert receipt is not None and any("Conv that gives v0" in note for note in receipt.notes)


@pytest.mark.slow
@pytest.mark.case("B7")
def test_an_input_can_be_fixed_to_an_array_which_the_file_gets_in_the_check(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "voice"], ["scaled"]),
        helper.make_node("Add", ["h", "scaled"], ["h_next"]),
        helper.make_node("Tanh", ["h_next"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    names = ("x", "voice", "h")
    graph = helper.make_graph(
        nodes,
        "g",
        [value(n, F, ["batch", 3]) for n in names],
        [value(n, F, ["batch", 3]) for n in ("y", "h_next")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    voice = np.array([[1.0, -2.0, 3.0]], np.float32)
    np.save(tmp_path / "voice.npy", voice)
    words = ["adopt", str(tmp_path / "m.onnx"), "--dim", "batch=1", "--yes", "--steps", "20"]
    out = tmp_path / "b"
    words += ["--const", f"voice={tmp_path / 'voice.npy'}", "--out", str(out)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    with Session.open(out) as session:
        answer = session.step(x=np.ones((1, 3), np.float32))["y"]
        np.testing.assert_allclose(answer, np.tanh(voice), rtol=1e-6)
    np.save(tmp_path / "voice.npy", voice[:, :2])
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "voice" in refused.output and "batch, 3" in refused.output


@pytest.mark.case("B6")
def test_open_axes_are_named_all_at_once_with_options_that_can_be_pasted(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["h", "x"], ["h_next"]), helper.make_node("Tanh", ["h"], ["y"])],
        "g",
        [value("x", F, ["batch", 3]), value("h", F, [None, 3])],
        [value("y", F, [None, 3]), value("h_next", F, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    words = [
        "adopt",
        str(tmp_path / "m.onnx"),
        "--yes",
        "--steps",
        "20",
        "--out",
        str(tmp_path / "b"),
    ]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "x[batch, 3], h[?, 3]" in refused.output
    remedy = refused.output.split("what to do: ")[1].split(";")[0]
    pasted = CliRunner().invoke(main, [*words, *remedy.split()])
    assert pasted.exit_code == 0, pasted.output


@pytest.mark.case("B4")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("initial_h initial_c", "Y_h Y_c"),
        ("hx cx", "hy cy"),
        ("state_h state_c", "new_h new_c"),
        ("lstm/h lstm/c", "lstm/h_next lstm/c_next"),
        ("past_key_values.0.ssm past_key_values.1.ssm", "present.0.ssm present.1.ssm"),
    ],
)
def test_names_tell_h_from_c_of_one_shape(before: str, after: str) -> None:
    inputs = {n: TensorSpec(n, (1, 1, 8)) for n in before.split()} | {"x": TensorSpec("x", (1, 4))}
    outputs = {n: TensorSpec(n, (1, 1, 8)) for n in after.split()} | {"y": TensorSpec("y", (1, 2))}
    pairs, _ = find_pairs(inputs, outputs)
    assert pairs == dict(zip(before.split(), after.split(), strict=True))


@pytest.mark.case("B4")
@pytest.mark.parametrize("pair", ["length encoded_lengths", "prev_action action", "mask new_mask"])
def test_what_goes_around_outside_of_the_model_is_no_proposal(pair: str) -> None:
    before, after = pair.split()
    inputs = {n: TensorSpec(n, (1, 4)) for n in (before, "h_in")} | {"x": TensorSpec("x", (1, 9))}
    outputs = {n: TensorSpec(n, (1, 4)) for n in (after, "h_out")}
    assert find_pairs(inputs, outputs)[0] == {"h_in": "h_out"}
    del inputs["h_in"], outputs["h_out"]
    with pytest.raises(StatePairingError, match=f"{before} -> {after}"):
        find_pairs(inputs, outputs)


def test_an_operator_that_takes_a_state_and_gets_none_is_lifted_too() -> None:
    stack = Stack(4)
    stack.value = stack.node("CausalConvWithState", "x", stack.weight(4, 1, 3), outputs=2)
    stack.nodes[-1].domain = "com.microsoft"
    stack.gru()
    model = stack.model()
    x = np.random.default_rng(0).standard_normal((1, 4, 30)).astype(np.float32)
    assert_streams(model, x, 2)
    assert_streams(model, x, 2, hop=5)


def test_a_gru_inside_of_a_function_is_found_and_lifted(tmp_path: Path) -> None:
    stack = Stack(3)
    opset = [helper.make_opsetid("", 17)]
    gru = helper.make_node("GRU", ["a", "w", "r"], ["o"], hidden_size=4)
    function = helper.make_function("own", "Layer", ["a", "w", "r"], ["o"], [gru], opset)
    turned = stack.node("Transpose", "x", perm=[2, 0, 1])
    stack.value = stack.node("Layer", turned, stack.weight(1, 12, 4), stack.weight(1, 12, 4))
    stack.nodes[-1].domain = "own"
    stack.nodes.append(helper.make_node("Identity", [stack.value], ["y"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        stack.nodes,
        "g",
        [value("x", F, [1, 4, "T"])],
        [value("y", F, [None] * 4)],
        stack.weights,
    )
    own = helper.make_opsetid("own", 1)
    model = helper.make_model(
        graph, functions=[function], opset_imports=[*opset, own], ir_version=9
    )
    with pytest.raises(StatePairingError, match="GRU[\\s\\S]*add --lift"):
        stategate.adopt(model, tmp_path / "b", dims={"T": 1})
    bundle = stategate.adopt(model, tmp_path / "b", lift=True, accept_pairs=True, steps=20)
    assert len(bundle.manifest.states) == 1


def test_a_quantised_lstm_that_scales_by_the_whole_sequence_is_named(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    stack = Stack(1)
    stack.lstm()
    onnx.save(stack.model(), tmp_path / "a.onnx")
    quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx", op_types_to_quantize=["LSTM"])
    with pytest.raises(GraphError, match="DynamicQuantizeLSTM .* scales all frames by the largest"):
        stategate.adopt(tmp_path / "b.onnx", tmp_path / "b", lift=True, accept_pairs=True)


@pytest.mark.case("B2")
def test_a_recurrent_node_is_named_where_no_axis_of_time_shows(tmp_path: Path) -> None:
    """Behind a pooling of many frames its length does not grow with that of the input."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 2, 0]),
        helper.make_node(
            "AveragePool", ["turned"], ["pooled"], kernel_shape=[64], strides=[64], pads=[0, 63]
        ),
        helper.make_node("Transpose", ["pooled"], ["fewer"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["fewer", "W", "R"], ["", "y"], hidden_size=2),
    ]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(1, 6, k)).astype(np.float32), name)
        for name, k in (("W", 4), ("R", 2))
    ]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", F, ["T", 1, 4])], [value("y", F, [1, 1, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(StatePairingError, match="has recurrent nodes\n  found: GRU that gives y"):
        stategate.adopt(model, tmp_path / "b", dims={"T": 1}, accept_pairs=True)
    assert not (tmp_path / "b").exists()


def _over_a_window(dims: list[Any], kind: str) -> onnx.ModelProto:
    """Attention over a fixed window of 8 frames, or rows that are repeated many times."""
    stack = Stack(5)
    value = stack.node("Add", "x", stack.weight(1, 4, 8) if kind == "attention" else stack.weight())
    if kind == "attention":
        turned = stack.node("Transpose", value, perm=[0, 2, 1])
        looks = stack.node("Softmax", stack.node("MatMul", turned, value), axis=-1)
        value = stack.node("MatMul", value, looks)
    elif kind == "many copies":
        value = stack.node("Expand", value, stack.constant([100_000_000, 1, 1]))
    nodes = [*stack.nodes, helper.make_node("ReduceMean", [value], ["y"], axes=[1], keepdims=0)]
    info = helper.make_tensor_value_info
    inputs, outputs = [info("x", F, dims)], [info("y", F, [dims[0], dims[2]])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stack.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("lift", "problem"), [(True, GraphError), (False, StatePairingError)])
def test_an_open_first_axis_of_all_inputs_and_outputs_is_a_batch_unless_it_is_declared_as_time(
    tmp_path: Path, lift: bool, problem: type[Exception]
) -> None:
    model, out = _over_a_window(["s6", 4, 8], "attention"), tmp_path / "b"
    words = "which axis is time does not show" if lift else "no input looks like a state"
    with pytest.raises(problem, match=words):
        stategate.adopt(model, out, dims={"s6": 1}, lift=lift, accept_pairs=True)
    with pytest.raises(GraphError, match="hidden between the frames of one call"):
        stategate.adopt(
            model, out, dims={"s6": 1}, time_axes={"x": 0}, lift=True, accept_pairs=True
        )
    assert not out.exists()


@pytest.mark.parametrize(
    ("dims", "kind", "found"),
    [
        ([1, 1 << 19, "T"], "rows", "25,165,824 numbers as inputs"),
        pytest.param(
            *([1, 1, "T"], "many copies", "more than 2,147,483,648 bytes"),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory"),
        ),
    ],
)
def test_a_file_that_takes_too_much_over_a_longer_sequence_is_not_tried(
    tmp_path: Path, dims: list[Any], kind: str, found: str
) -> None:
    with pytest.raises(GraphError, match=rf"is not tried[\s\S]*{found}"):
        stategate.adopt(_over_a_window(dims, kind), tmp_path / "b", lift=True, accept_pairs=True)
    assert not (tmp_path / "b").exists()


def test_calls_that_are_not_compared_because_they_take_too_much_are_in_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_ELEMENTS", 100)
    model, out = _explicit_gru(hidden_conv=False), tmp_path / "b"
    bundle = stategate.adopt(model, out, dims={"T": 1}, accept_pairs=True, steps=20)
    receipt = bundle.manifest.verification
    assert receipt is not None and any("is not compared" in note for note in receipt.notes)
