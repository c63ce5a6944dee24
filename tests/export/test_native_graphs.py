"""What becomes C of graphs as users have them, and what becomes of a bundle whose C is wrong."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import stategate
from stategate.cli.main import main
from stategate.common.compiler import compile_library
from stategate.contract import Bundle
from stategate.contract.errors import StateFault
from stategate.export.c.lower import Source, source_of
from stategate.export.candidates import candidate_from
from stategate.export.deploy import with_c
from stategate.export.frontends.adopt import Adopted, OnnxReference, adopt
from stategate.export.frontends.declared import Request
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.models import lift
from stategate.models.load import LoadedModel

CASES = Path(__file__).parents[1] / "cases"
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
node = helper.make_node


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name) + sum(shape)).normal(0, 0.4, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: list[onnx.TensorProto],
) -> Path:
    """An ONNX file; inputs called ``lens`` and ``mode`` are int32."""
    sides = [
        [
            helper.make_tensor_value_info(n, INT32 if n in ("lens", "mode") else FLOAT, shape)
            for n, shape in side.items()
        ]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "step", *sides, weights)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "step.onnx")
    return folder / "step.onnx"


def sealed(adopted: Adopted, folder: Path, steps: int = 30) -> Bundle:
    candidate = with_c(adopted.candidate)
    episode = random_episode(candidate.spec, steps)
    return seal(folder / "bundle", candidate, OnnxReference(adopted.candidate), episode)


def error_of(bundle: Bundle) -> float:
    native = bundle.manifest.native
    assert native is not None, bundle.manifest.no_native
    assert native.max_output_error is not None
    return native.max_output_error


@pytest.mark.slow
@pytest.mark.case("C1")
def test_a_gru_of_torch_has_a_native_engine(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = ["export", f"{CASES / 'models.py'}:gru_policy", "--steps", "50", "--out", str(out)]
    done = CliRunner().invoke(main, [*words, "--engines", "native"])
    assert done.exit_code == 0, done.output
    assert error_of(Bundle.open(out)) < 1e-6


@pytest.mark.slow
@pytest.mark.corners("GRU-forward-none", "LSTM-reverse-input")
@pytest.mark.case("C1", "C4")
@pytest.mark.parametrize("lens", ["none", "input"])
@pytest.mark.parametrize(
    ("kind", "direction"),
    [("GRU", "forward"), ("RNN", "reverse"), ("LSTM", "reverse"), ("LSTM", "bidirectional")],
)
def test_recurrent_operators_are_right_in_c(
    tmp_path: Path, kind: str, direction: str, lens: str
) -> None:
    sides, gates = (2 if direction == "bidirectional" else 1), {"LSTM": 4, "GRU": 3, "RNN": 1}
    rows = gates[kind] * 8
    weights = [
        weight("W", sides, rows, 4),
        weight("R", sides, rows, 8),
        weight("B", sides, 2 * rows),
    ]
    inputs: dict[str, list[int | str]] = {"x": [3, 1, 4], "h": [sides, 1, 8]}
    states, taken, given = {"h": "h_next"}, ["h"], ["y", "h_next"]
    if kind == "LSTM":
        inputs["c"], states["c"] = [sides, 1, 8], "c_next"
        taken, given = ["h", "c"], [*given, "c_next"]
    if lens == "input":
        inputs["lens"] = [1]  # the episode has 0 and 1
    outputs: dict[str, list[int | str]] = {n: [sides, 1, 8] for n in given}
    outputs["y"] = [3, sides, 1, 8]
    names = ["x", "W", "R", "B", "" if lens == "none" else "lens", *taken]
    step = node(kind, names, given, hidden_size=8, direction=direction)
    path = saved(tmp_path, [step], inputs, outputs, weights)
    bundle = sealed(adopt(path, Request({}, {}, {}, states)), tmp_path)
    assert error_of(bundle) < 5e-6


@pytest.mark.slow
@pytest.mark.case("B15")
@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([], [constant("y", [[1, 2, 3, 4]])]),
        ([node("Constant", [], ["y"], value=constant("v", [[1, 2, 3, 4]]))], []),
        ([node("Exp", ["log_std"], ["y"])], [constant("log_std", [[-1, 0, 1, 2]])]),
    ],
    ids=["an initializer", "a node", "computed"],
)
def test_an_output_that_is_a_constant_is_given_in_c(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]
) -> None:
    update = [node("Mul", ["h", "half"], ["kept"]), node("Add", ["kept", "x"], ["h_next"])]
    shape: dict[str, list[int | str]] = {"x": [1, 4], "h": [1, 4]}
    given: dict[str, list[int | str]] = {"h_next": [1, 4], "y": [1, 4]}
    path = saved(tmp_path, [*update, *nodes], shape, given, [constant("half", 0.5), *weights])
    assert error_of(sealed(adopt(path, Request({}, {}, {}, {"h": "h_next"})), tmp_path)) < 1e-6


@pytest.mark.slow
@pytest.mark.case("B15")
def test_a_next_state_that_is_a_constant_is_given_in_c(tmp_path: Path) -> None:
    shape: dict[str, list[int | str]] = {"x": [1, 4], "h": [1, 4]}
    given: dict[str, list[int | str]] = {"y": [1, 4], "h_next": [1, 4]}
    nodes, fixed = [node("Add", ["h", "x"], ["y"])], constant("h_next", [[1, 2, 3, 4]])
    path = saved(tmp_path, nodes, shape, given, [fixed])
    assert error_of(sealed(adopt(path, Request({}, {}, {}, {"h": "h_next"})), tmp_path)) < 1e-6


class Actor(nn.Module):
    """A policy as rsl_rl has it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.act = nn.LSTM(48, 256), nn.Linear(256, 12)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple:
        y, (h, c) = self.memory(x[None], (h, c))
        return self.act(y[0]), h, c


@pytest.mark.case("C2")
def test_weights_are_put_in_order_once_and_not_in_every_step() -> None:
    zeros = torch.zeros(1, 1, 256)
    model = lift(Actor(), {"x": torch.zeros(1, 48)}, hidden={"h": zeros, "c": zeros}, outputs=["a"])
    candidate = candidate_from(LoadedModel("Actor", "custom", "tests", model, model, None))
    graph = onnx.load_model_from_string(candidate.graph)
    moved = {"Slice", "Concat", "Transpose", "Unsqueeze"}
    assert moved & {n.op_type for n in graph.graph.node}, "torch writes an LSTM in another way now"
    text = source_of(candidate.graph, candidate.spec, {}).files["read.c"].decode()
    pools = [int(n) for n in re.findall(r"float float_pool\[(\d+)\]", text)]
    assert len(pools) == 1 and pools[0] < 8 * 256  # no temporary is a weight


def branching(folder: Path) -> Path:
    """A file with open axes, whose constant input takes a branch that has weights of its own."""

    def branch(name: str, factor: float) -> onnx.GraphProto:
        inner = [node("Mul", ["moved", "factor"], ["scaled"]), node("Tanh", ["scaled"], ["b"])]
        value = helper.make_tensor_value_info("b", FLOAT, ["batch", 4])
        return helper.make_graph(inner, name, [], [value], [constant("factor", factor)])

    nodes = [
        node("Shape", ["x"], ["extents"]),
        node("ConstantOfShape", ["extents"], ["ones"], value=constant("one", [1.0])),
        node("Add", ["x", "ones"], ["moved"]),
        node("Equal", ["mode", "wanted"], ["is_wanted"]),
        node("If", ["is_wanted"], ["branched"], then_branch=branch("yes", 2.0),
             else_branch=branch("no", -3.0)),
        node("MatMul", ["h", "W"], ["turned"]),
        node("Add", ["turned", "branched"], ["sum"]),
        node("Tanh", ["sum"], ["h_next"]),
        node("Mul", ["h_next", "scale"], ["y"]),
    ]  # fmt: skip
    inputs: dict[str, list[int | str]] = {"x": ["batch", 4], "h": ["batch", 4], "mode": []}
    outputs: dict[str, list[int | str]] = {"y": ["batch", 4], "h_next": ["batch", 4]}
    weights = [weight("W", 4, 4), constant("wanted", 7, np.int32), constant("scale", 3.0)]
    return saved(folder, nodes, inputs, outputs, weights)


@pytest.mark.slow
@pytest.mark.case("C3")
@pytest.mark.parametrize("mode", ["7", "8"])
def test_pinned_axes_and_constants_reach_the_c_and_the_file_stays_as_it_is(
    tmp_path: Path, mode: str
) -> None:
    path = branching(tmp_path)
    adopted = adopt(path, Request({"batch": 1}, {}, {"mode": mode}, {"h": "h_next"}))
    bundle = sealed(adopted, tmp_path)
    assert error_of(bundle) < 1e-6
    assert bundle.read(bundle.manifest.step_graph.file) == path.read_bytes()


Change = Callable[[dict[str, bytes]], None]


def syntax_error(source: dict[str, bytes]) -> None:
    source["read.c"] += b"this is no C;\n"


def wrong_sign(source: dict[str, bytes]) -> None:
    functions = source["stategate_math.h"]
    source["stategate_math.h"] = functions.replace(b"return copysignf(", b"return -copysignf(")


def crash(source: dict[str, bytes]) -> None:
    call = b"    stategate_read("
    source["model.c"] = source["model.c"].replace(call, b"    __builtin_trap();\n" + call, 1)


@pytest.mark.slow
@pytest.mark.case("C4")
@pytest.mark.parametrize(
    ("change", "says"),
    [(syntax_error, "refused the source"), (wrong_sign, "golden episode"), (crash, "SIGILL")],
)
def test_wrong_c_costs_the_native_engine_and_not_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, says: str
) -> None:
    def wrong(*given: object) -> Source:
        source = source_of(*given)  # type: ignore[arg-type]
        change(source.files)
        return source

    monkeypatch.setattr("stategate.export.c.lower.source_of", wrong)
    words = ["adopt", str(branching(tmp_path)), "--dim", "batch=1", "--const", "mode=7"]
    words += ["--state", "h=h_next", "--steps", "30"]
    out = tmp_path / "with"
    done = CliRunner().invoke(main, [*words, "--engines", "onnxruntime,native", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "no native engine, onnxruntime steps this bundle: " in done.stderr
    manifest = Bundle.open(out).manifest
    assert manifest.native is None and says in manifest.no_native
    assert not any(file.path.startswith("native/") for file in manifest.files)
    assert manifest.verification is not None
    assert says in CliRunner().invoke(main, ["inspect", str(out)]).output
    demanded = tmp_path / "demanded"
    done = CliRunner().invoke(main, [*words, "--engines", "native", "--out", str(demanded)])
    assert done.exit_code != 0 and says in done.stderr and not demanded.exists()


def growing_picture(folder: Path) -> Path:
    """A file with an operator that emx-onnx-cgen writes."""
    nodes = [
        node("Add", ["x", "h"], ["h_next"]),
        node("Resize", ["h_next", "", "scales"], ["y"], mode="linear"),
    ]
    inputs: dict[str, list[int | str]] = {"x": [1, 2, 4, 4], "h": [1, 2, 4, 4]}
    outputs: dict[str, list[int | str]] = {"h_next": [1, 2, 4, 4], "y": [1, 2, 8, 8]}
    return saved(folder, nodes, inputs, outputs, [constant("scales", [1, 1, 2, 2])])


@pytest.mark.case("C4")
def test_what_the_generator_trips_over_costs_the_native_engine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trips(*_: object) -> str:
        raise KeyError("v7")

    monkeypatch.setattr("emx_onnx_cgen.Compiler.compile", trips)
    path = growing_picture(tmp_path)
    adopted = adopt(path, Request({}, {}, {}, {"h": "h_next"}))
    manifest = sealed(adopted, tmp_path).manifest
    assert manifest.native is None and "cannot be written as C found: 'v7'" in manifest.no_native


@pytest.mark.slow
def test_a_picture_that_grows_by_a_constant_has_a_native_engine(tmp_path: Path) -> None:
    path = growing_picture(tmp_path)
    bundle = sealed(adopt(path, Request({}, {}, {}, {"h": "h_next"})), tmp_path)
    assert error_of(bundle) < 1e-6


@pytest.mark.slow
def test_a_slice_backwards_and_a_size_that_follows_from_another_have_a_native_engine(
    tmp_path: Path,
) -> None:
    nodes = [
        node("Concat", ["h", "x"], ["longer"], axis=1),
        node("Slice", ["longer", "one", "huge", "axis"], ["h_next"]),
        # Both axes backwards, one in steps of two, from the last place and from the second.
        node("Slice", ["h_next", "from", "to", "axes", "steps"], ["mirrored"]),
        # How far the last slice goes is known only when the size of another is.
        node("Shape", ["mirrored"], ["size"]),
        node("Gather", ["size", "first"], ["rows"]),
        node("Unsqueeze", ["rows", "zero"], ["end"]),
        node("Slice", ["mirrored", "zero", "end", "zero"], ["part"]),
        node("Einsum", ["part", "W"], ["y"], equation="ab,bac->ac"),
    ]
    inputs: dict[str, list[int | str]] = {"x": [3, 1], "h": [3, 5]}
    outputs: dict[str, list[int | str]] = {"h_next": [3, 5], "y": [2, 4]}
    numbers = {"one": [1], "huge": [2**62], "axis": [1], "zero": [0], "first": 0}
    numbers |= {"from": [-1, 2], "to": [-(2**62), -(2**62)], "axes": [1, 0], "steps": [-1, -2]}
    weights = [weight("W", 5, 2, 4), *(constant(n, v, np.int64) for n, v in numbers.items())]
    path = saved(tmp_path, nodes, inputs, outputs, weights)
    bundle = sealed(adopt(path, Request({}, {}, {}, {"h": "h_next"})), tmp_path)
    assert error_of(bundle) < 1e-6


@pytest.mark.case("C4")
def test_a_step_that_c_lacks_is_refused_where_native_alone_was_asked_for(tmp_path: Path) -> None:
    words = ["adopt", str(branching(tmp_path)), "--dim", "batch=1", "--state", "h=h_next"]
    words += ["--steps", "5", "--range", "mode=6:7"]  # the branch depends on an input
    for engines, code in (("onnxruntime,native", 0), ("native", 2)):
        out = tmp_path / engines
        done = CliRunner().invoke(main, [*words, "--engines", engines, "--out", str(out)])
        assert done.exit_code == code and out.exists() == (code == 0), done.output


class Masked(nn.Module):
    """A gain of zero lets NaN and infinity through, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h.mul_(0.5).add_(x + (1 / x) * 0.0)
        return self.h


@pytest.mark.slow
def test_nan_and_infinity_go_through_a_product_with_zero_in_c(tmp_path: Path) -> None:
    """With sums in any order, gcc takes ``x + d * 0`` for ``x``, also where d is not finite."""
    model = lift(Masked(), {"x": torch.ones(1, 4)}, states=["h"], outputs=["y"])
    candidate = candidate_from(LoadedModel("masked", "custom", "tests", model, model, None))
    library = tmp_path / "lib.so"
    sources = source_of(candidate.graph, candidate.spec, {}).files
    library.write_bytes(compile_library(sources).library)
    x, h = np.array([[0, 1, 2, -3]], np.float32), np.zeros((1, 4), np.float32)
    results = {name: np.zeros((1, 4), np.float32) for name in candidate.spec.graph_outputs()}
    tables = [
        (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        for arrays in ([x, h], list(results.values()))
    ]
    assert ctypes.CDLL(str(library)).stategate_compute(*tables) == 0
    for array in results.values():
        np.testing.assert_array_equal(array, [[np.nan, 1, 2, -3]])


@pytest.mark.parametrize(
    ("operator", "shape", "axis"),
    [
        ("Gather", [1, 1], {"axis": 0}),
        pytest.param("GatherElements", [1, 3], {"axis": 0}, marks=pytest.mark.slow),
        pytest.param("GatherND", [2], {}, marks=pytest.mark.slow),
        pytest.param("ScatterElements", [1, 3], {"axis": 0}, marks=pytest.mark.slow),
        pytest.param("ScatterND", [1, 2], {}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, pytest.param(np.int64, marks=pytest.mark.slow)])
def test_an_index_outside_of_its_table_is_a_fault_and_touches_nothing(
    operator: str, shape: list[int], axis: dict[str, int], kind: type, tmp_path: Path
) -> None:
    updates = np.arange(prod(shape) if operator == "ScatterElements" else 1, dtype=kind)
    arrays = {"table": np.arange(15, dtype=kind).reshape(5, 3)}
    if "Scatter" in operator:
        arrays["updates"] = updates.reshape(shape) if "E" in operator else updates
    table = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [
        node(operator, ["table", "token", *list(arrays)[1:]], ["row"], **axis),
        node("Cast", ["row"], ["numbers"], to=FLOAT),
        node("ReduceSum", ["numbers"], ["sum"], keepdims=0),
        node("Add", ["h", "sum"], ["h_out"]),
        node("Identity", ["h_out"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("token", TensorProto.INT64, shape),
        helper.make_tensor_value_info("h", FLOAT, [1, 1]),
    ]
    outputs = [helper.make_tensor_value_info(name, FLOAT, [1, 1]) for name in ("y", "h_out")]
    graph = helper.make_graph(nodes, "lookup", inputs, outputs, table)
    file = tmp_path / "lookup.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), file)
    bundle = stategate.adopt(
        file,
        tmp_path / "lookup",
        states={"h": "h_out"},
        engines="onnxruntime,native",
        input_ranges={"token": (0, 2)},
        steps=10,
    )

    with stategate.Session.open(bundle, engine="native") as session:
        y = session.step(token=np.full(shape, -1))["y"].copy()
        # Beyond the table, far beyond it, and with a place in it in the low 32 bits.
        for outside in (5, 10**7, 2**32 + 1, -6):
            with pytest.raises(StateFault):
                session.step(token=np.full(shape, outside))
        np.testing.assert_array_equal(session.state("h"), y)
