from __future__ import annotations

import functools

import click
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from stategate.cli.options import kinds_of
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import ExportError
from stategate.contract.stored import quantised, values
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from
from stategate.export.passes.state_precision import store_states, stored
from stategate.export.precision import by_name
from stategate.models.load import LoadedModel
from stategate.models.step import StepResult

FORMS = [("float16", False), ("int8", False), ("int8", True), ("int8-tensor", False)]


class Heads(nn.Module):
    """Three heads that add their input to a matrix, each where its own gate is open."""

    def __init__(self, granularity: str = "head", gate: tuple[int, ...] = (1, 3)) -> None:
        super().__init__()
        self.granularity, self.gate = granularity, gate

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 3, 4, 5)), TensorSpec("g", self.gate)),
            outputs=(TensorSpec("y", (1, 3, 4, 5)),),
            states=(StateSpec("S", (1, 3, 4, 5), gate="gate", layout="head, key, value"),),
            gates=(GateSpec("gate", "hard", self.gate, 0.0, "limit", self.granularity),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        g = inputs["g"]
        is_open = (g > inputs["limit"]).reshape(g.shape + (1,) * (4 - g.ndim))
        S = torch.where(is_open, 0.9 * states["S"] + inputs["x"], states["S"])
        return StepResult({"y": 2.0 * S}, {"S": S}, {"gate": g})


@functools.cache
def traced(model: nn.Module, sessions: int) -> Candidate:
    return candidate_from(LoadedModel("m", "custom", "tests", model, model, None), sessions)


HEADS = Heads()
WHOLE = Heads("step", (1, 1))


class Stepper:
    """A candidate's graph on its own states, without the runtime."""

    def __init__(self, model: nn.Module, storage: dict, feedback: bool, sessions: int = 1) -> None:
        self.candidate = stored(traced(model, sessions), storage, feedback)
        self.spec = self.candidate.spec
        self.session = onnxruntime.InferenceSession(self.candidate.graph)
        start = {s.name: np.zeros(s.shape, s.dtype) for s in self.spec.states}
        self.states = start | self.candidate.initial

    def step(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        fixed = {c.name: np.full(c.shape, c.value, c.dtype) for c in self.spec.fixed_inputs}
        names = [o.name for o in self.session.get_outputs()]
        given = dict(
            zip(names, self.session.run(None, {**inputs, **fixed, **self.states}), strict=True)
        )
        self.states = {s.name: given[s.next_name] for s in self.spec.states}
        return given

    @property
    def value(self) -> np.ndarray:
        return values(self.spec.states, self.states)["S"]


def draw(rng: np.random.Generator) -> np.ndarray:
    spread = 10.0 ** rng.uniform(-3, 3, (1, 3, 4, 1))
    return (spread * rng.standard_normal((1, 3, 4, 5))).astype(np.float32)


@pytest.mark.parametrize(("kind", "feedback"), FORMS[:3])
def test_a_closed_head_keeps_every_stored_byte_while_the_others_are_written(kind, feedback) -> None:
    rng = np.random.default_rng(3)
    stepper = Stepper(HEADS, {"S": kind}, feedback)
    for _ in range(30):
        g = rng.standard_normal((1, 3)).astype(np.float32)
        before = stepper.states
        stepper.step(x=draw(rng), g=g)
        for name, after in stepper.states.items():
            for head in range(3):
                same = before[name][0, head].tobytes() == after[0, head].tobytes()
                assert same or g[0, head] > 0, (name, head)
        if (g > 0).all():
            assert not np.array_equal(before["S"], stepper.states["S"])


@pytest.mark.parametrize(("kind", "feedback"), FORMS)
def test_a_closed_gate_leaves_every_stored_byte_alone(kind, feedback) -> None:
    rng = np.random.default_rng(4)
    stepper = Stepper(WHOLE, {"S": kind}, feedback)
    stepper.step(x=draw(rng), g=np.ones((1, 1), np.float32))
    before = {name: array.tobytes() for name, array in stepper.states.items()}
    for _ in range(5):
        stepper.step(x=draw(rng), g=-np.ones((1, 1), np.float32))
    assert {name: array.tobytes() for name, array in stepper.states.items()} == before


def test_integers_are_those_of_onnx_s_quantizelinear() -> None:
    x = draw(np.random.default_rng(5))
    stepper = Stepper(HEADS, {"S": "int8"}, False)
    stepper.step(x=x, g=np.ones((1, 3), np.float32))
    scale = (np.abs(x).max(-1) / 127).astype(np.float32)
    np.testing.assert_allclose(stepper.states["S.scale"][..., 0], scale, rtol=1e-6)
    node = onnx.parser.parse_graph(
        "g (float[12, 5] x, float[12] s, int8[12] z) => (int8[12, 5] q) "
        "{ q = QuantizeLinear<axis=0>(x, s, z) }"
    )
    model = onnx.helper.make_model(node, opset_imports=[onnx.helper.make_opsetid("", 20)])
    feeds = {"x": x.reshape(12, 5), "s": scale.ravel(), "z": np.zeros(12, np.int8)}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    assert np.array_equal(stepper.states["S"].reshape(12, 5), expected)


@pytest.mark.parametrize(
    ("kind", "feedback", "steps_off"),
    [("int8", False, 0.5), ("int8", True, 0.5 / 254), ("int8-tensor", False, 0.5)],
)
def test_a_store_is_off_by_half_a_step_of_its_scale(kind, feedback, steps_off) -> None:
    x = draw(np.random.default_rng(6))
    model = WHOLE
    stepper = Stepper(model, {"S": kind}, feedback)
    given = stepper.step(x=x, g=np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(given["y"], 2 * x)  # before it was stored
    off = np.abs(stepper.value - x) / stepper.states["S.scale"]
    assert off.max() <= steps_off * 1.01
    assert off.max() > steps_off * 0.5


@pytest.mark.parametrize("kind", ["float16", "int8", "int8-tensor"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_still_seen_when_it_is_stored(kind, poison) -> None:
    x = draw(np.random.default_rng(7))
    x[0, 1, 2, 3] = poison
    stepper = Stepper(WHOLE, {"S": kind}, False)
    stepper.step(x=x, g=np.ones((1, 1), np.float32))
    parts = stepper.states.values()
    assert not all(np.isfinite(a).all() for a in parts if a.dtype.kind == "f")


@pytest.mark.parametrize(("kind", "feedback"), FORMS)
def test_a_start_that_is_not_zero_is_stored_too(tiny_with_start, kind, feedback) -> None:
    stepper = Stepper(tiny_with_start, {"h": kind}, feedback)
    start = values(stepper.spec.states, stepper.states)["h"]
    np.testing.assert_allclose(start, [[0.5, -0.25, 0.125, 1.0]], atol=0.5 / 127)
    before = stepper.states
    stepper.step(x=np.full((1, 4), -1.0, np.float32))
    assert np.array_equal(stepper.states["h"], before["h"])
    assert stepper.states["count"] == 1.0


def test_rows_of_a_pool_have_scales_of_their_own() -> None:
    rng = np.random.default_rng(8)
    x = np.concatenate([draw(rng), 1e3 * draw(rng)])
    g = np.ones((2, 1), np.float32)
    both = Stepper(WHOLE, {"S": "int8-tensor"}, False, sessions=2)
    alone = Stepper(WHOLE, {"S": "int8-tensor"}, False)
    both.step(x=x, g=g)
    alone.step(x=x[:1], g=g[:1])
    assert np.array_equal(both.value[:1], alone.value)


def test_an_all_zero_row_stays_zero() -> None:
    quiet = np.zeros((1, 3, 4, 5), np.float32)
    stepper = Stepper(HEADS, {"S": "int8"}, True)
    stepper.step(x=quiet, g=np.ones((1, 3), np.float32))
    assert np.array_equal(stepper.value, quiet)
    whole, scale, left = quantised(quiet, "int8", True)
    assert not whole.any() and not scale.any() and left is not None and not left.any()


def test_the_parts_have_the_gate_and_the_bytes_that_they_take() -> None:
    spec = Stepper(HEADS, {"S": "int8"}, True).spec
    forms = {s.name: (s.dtype, s.shape, s.gate) for s in spec.states}
    assert forms == {
        "S": ("int8", (1, 3, 4, 5), "gate"),
        "S.scale": ("float32", (1, 3, 4, 1), "gate"),
        "S.residual": ("int8", (1, 3, 4, 5), "gate"),
    }
    assert spec.state_bytes == 60 + 48 + 60


@pytest.mark.parametrize(
    ("model", "storage", "feedback", "told"),
    [
        (HEADS, {"S": "bfloat16"}, False, "NumPy"),
        (HEADS, {"M": "int8"}, False, "no such state"),
        (HEADS, {"S": "int8-tensor"}, False, "closed"),
        (Heads("channel", (1, 3, 4, 5)), {"S": "int8"}, False, "closed"),
        (HEADS, {"S": "float16"}, True, "nothing to feed back"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_the_reason(model, storage, feedback, told) -> None:
    with pytest.raises(ExportError, match=told):
        Stepper(model, storage, feedback)


@pytest.mark.case("B16")
def test_a_storage_for_one_state_counts_more_than_one_for_all_in_any_order() -> None:
    spec = StepSpec(
        (TensorSpec("x", (1, 4)),),
        (TensorSpec("y", (1, 4)),),
        tuple(StateSpec(name, (1, 4), gate="g") for name in ("S", "T")),
        (GateSpec("g", "hard", threshold=0.0),),
    )
    for options in (("S=float16", "int8"), ("int8", "S=float16")):
        assert by_name(kinds_of(options), spec) == {"S": "float16", "T": "int8"}
    for options in (("S=float16", "S=int8"), ("int8", "float16")):
        with pytest.raises(click.BadParameter, match="is given twice"):
            kinds_of(options)


class Column(nn.Module):
    """A memory that is one column: its last axis holds one number."""

    def step_spec(self) -> StepSpec:
        column = (1, 64, 1)
        return StepSpec(
            (TensorSpec("x", column),), (TensorSpec("y", column),), (StateSpec("S", column),)
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        S = 0.5 * states["S"] + inputs["x"]
        return StepResult({"y": 2.0 * S}, {"S": S}, {})


@pytest.mark.case("C5")
@pytest.mark.parametrize("sessions", [1, 2])
def test_a_column_shares_scales_along_its_length(sessions: int) -> None:
    stepper = Stepper(Column(), {"S": "int8"}, False, sessions)
    shapes = {s.name: s.shape for s in stepper.spec.states}
    assert shapes == {"S": (sessions, 64, 1), "S.scale": (sessions, 1, 1)}
    x = np.random.default_rng(1).standard_normal((sessions, 64, 1)).astype(np.float32)
    stepper.step(x=x)
    half_a_step = np.abs(x).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(stepper.value - x) <= 1.001 * half_a_step).all()


@pytest.mark.case("C5")
@pytest.mark.parametrize(
    ("shape", "kind", "feedback", "needed"),
    [((1, 1), "int8", False, 5), ((9, 1, 1), "int8-tensor", True, 0), ((1, 2), "int8", True, 8)],
)
def test_a_state_that_would_not_become_smaller_is_refused_with_the_figure(
    shape: tuple[int, ...], kind: str, feedback: bool, needed: int
) -> None:
    class Small(Column):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", shape),), (TensorSpec("y", shape),), (StateSpec("S", shape),)
            )

    if not needed:  # nine numbers with one scale: 9 + 4 + 9 of 36 bytes
        assert Stepper(Small(), {"S": kind}, feedback).spec.state_bytes == 22
        return
    with pytest.raises(ExportError, match=f"needs {needed} bytes .* float32 {np.prod(shape) * 4}"):
        Stepper(Small(), {"S": kind}, feedback)


@pytest.mark.case("C5")
@pytest.mark.parametrize(
    ("opset", "kind"), [(11, "float16"), (13, "int8"), (17, "int8"), (17, "float16"), (18, "int8")]
)
def test_older_graphs_store_their_states_in_fewer_bits_too(opset: int, kind: str) -> None:
    spec = StepSpec(
        (TensorSpec("x", (1, 8)),), (TensorSpec("y", (1, 8)),), (StateSpec("S", (1, 8)),)
    )
    floats = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 8))
        for n in ("x", "S", "y", "S_next")
    ]
    nodes = [
        onnx.helper.make_node("Add", ["S", "x"], ["S_next"]),
        onnx.helper.make_node("Neg", ["S_next"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "old", floats[:2], floats[2:])
    old = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    old.ir_version = 8
    narrow, stored_spec = store_states(old, spec, {"S": kind})
    session = onnxruntime.InferenceSession(narrow.SerializeToString())
    feeds = {s.name: np.zeros(s.shape, s.dtype) for s in stored_spec.states}
    x = np.random.default_rng(2).standard_normal((1, 8)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(None, feeds | {"x": x}), strict=True))
    after = {s.name: got[s.next_name] for s in stored_spec.states}
    quantum = np.abs(x).max() * (2**-10 if kind == "float16" else 1 / 127)
    assert np.abs(values(stored_spec.states, after)["S"] - x).max() <= 0.51 * quantum
    np.testing.assert_array_equal(got["y"], -x)


def test_int8_of_a_graph_too_old_for_it_names_the_opset() -> None:
    old = onnx.helper.make_model(
        onnx.helper.make_graph([], "old", [], []), opset_imports=[onnx.helper.make_opsetid("", 12)]
    )
    spec = StepSpec(
        (TensorSpec("x", (1, 8)),), (TensorSpec("y", (1, 8)),), (StateSpec("S", (1, 8)),)
    )
    with pytest.raises(ExportError, match="opset 12"):
        store_states(old, spec, {"S": "int8"})
