"""Memories in fewer bits: other last digits are let through, other arithmetic is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import (
    Bundle,
    Episode,
    FileRef,
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
    sha256,
    write_bundle,
)
from stategate.contract.errors import EpisodeError
from stategate.contract.manifest import ModelRef
from stategate.contract.stored import FINER, LEVELS
from stategate.export.candidate import Candidate
from stategate.export.inputs import random_episode
from stategate.export.passes.state_precision import stored
from stategate.export.precision import early_limits
from stategate.export.seal import verify
from stategate.export.seal.pack import seal
from stategate.runtime.check.golden import Replay, replay
from stategate.runtime.check.one_step import OneStep, one_step

FORMS = {"float16": ("float16", False), "int8": ("int8", False), "fed-back": ("int8", True)}
STEP = """<ir_version: 10, opset_import: ["": 20]>
step (float[@,16] x, float[1] threshold, float[@,8,32] S)
  => (float[@,32] y, float[@,1] gate, float[@,8,32] S_next) {
    gate = MatMul(x, wg)
    is_open = Greater(gate, threshold)
    open = Unsqueeze(is_open, axes)
    key_flat = MatMul(x, wk)
    key_small = Tanh(key_flat)
    key = Reshape(key_small, columns)
    value_flat = MatMul(x, wv)
    value = Unsqueeze(value_flat, axes)
    change = Mul(key, value)
    kept = Mul(S, decay)
    new = Add(kept, change)
    S_next = Where(open, new, S)
    y = ReduceSum<keepdims=0>(S_next, axes)
}"""


def spec(sessions: int = 1) -> StepSpec:
    return StepSpec(
        inputs=(TensorSpec("x", (sessions, 16)),),
        outputs=(TensorSpec("y", (sessions, 32)),),
        states=(StateSpec("S", (sessions, 8, 32), gate="gate"),),
        gates=(GateSpec("gate", "hard", (sessions, 1), 0.0, "threshold"),),
    )


def graph(sessions: int = 1) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    arrays = {
        "wg": rng.standard_normal((16, 1)).astype(np.float32),
        "wk": rng.standard_normal((16, 8)).astype(np.float32) / 4,
        "wv": rng.standard_normal((16, 32)).astype(np.float32) / 4,
        "decay": np.array(0.998, np.float32),
        "columns": np.array([sessions, 8, 1]),
        "axes": np.array([1]),
    }
    model = onnx.parser.parse_model(STEP.replace("@", str(sessions)))
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


class Float:
    """The model as it was."""

    name = "the float graph"

    def __init__(self, raw: bytes, sessions: int) -> None:
        self._session = onnxruntime.InferenceSession(raw)
        self._S = np.zeros((sessions, 8, 32), np.float32)

    def step(self, inputs: dict[str, np.ndarray]) -> tuple[dict, dict, dict]:
        feeds = {**inputs, "S": self._S, "threshold": np.zeros(1, np.float32)}
        y, gate, self._S = self._session.run(["y", "gate", "S_next"], feeds)
        return {"y": y}, {"S": self._S}, {"gate": gate}


def sealed(
    place: Path, kind: str, feedback: bool = False, sessions: int = 1, steps: int = 200
) -> Bundle:
    """The step with its state in some form, and what onnxruntime answered."""
    raw = graph(sessions).SerializeToString()
    model = ModelRef("m", "custom", "tests", sha256(raw))
    candidate = Candidate(model, spec(sessions), raw, (), sessions=sessions)
    candidate = stored(candidate, {"S": kind}, feedback)
    episode = random_episode(spec(sessions), steps)
    reference = Float(raw, sessions)
    return seal(place, candidate, reference, episode, limits=early_limits(None, None))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("one-step")
    made = {name: sealed(folder / name, *form) for name, form in FORMS.items()}
    return made | {"pool": sealed(folder / "pool", "float16", sessions=2)}


Change = Callable[[onnx.GraphProto], None]


def replayed(bundle: Bundle, change: Change, place: Path) -> Replay:
    """What comes of the golden episode where the step is computed otherwise."""
    manifest = bundle.manifest
    content = {file.path: bundle.read(file) for file in manifest.all_files}
    step = manifest.step_graph
    model = onnx.load_model_from_string(content[step.file.path])
    change(model.graph)
    content[step.file.path] = raw = model.SerializeToString()
    other = msgspec.structs.replace(step, file=FileRef(step.file.path, sha256(raw)))
    write_bundle(place, msgspec.structs.replace(manifest, graphs=(other,)), content)
    seen = replay(place)
    assert seen is not None
    return seen


def made_by(graph: onnx.GraphProto, tensor: str) -> int:
    return next(i for i, node in enumerate(graph.node) if tensor in node.output)


def other_digits(by: float) -> Change:
    """A product whose numbers are a little off, each in its own way, as another library's are."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node[made_by(graph, "value_flat")].output[0] = "exact"
        nearly_one = (1 + by * np.random.default_rng(6).uniform(-1, 1, 32)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(nearly_one, "nearly_one"))
        more = helper.make_node("Mul", ["exact", "nearly_one"], ["value_flat"])
        graph.node.insert(made_by(graph, "exact") + 1, more)

    return change


def rounding(graph: onnx.GraphProto, which: int) -> int:
    """Where a state is rounded: 0 to its levels, 1 what that leaves over to finer ones."""
    return [i for i, node in enumerate(graph.node) if node.op_type == "Round"][which]


def rounds_by(operator: str, which: int) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[rounding(graph, which)].op_type = operator

    return change


def truncates(graph: onnx.GraphProto) -> None:
    """Towards zero, in place of to the nearest integer."""
    at = rounding(graph, 0)
    steps, rounded = graph.node[at].input[0], graph.node[at].output[0]
    casts = [
        helper.make_node("Cast", [steps], ["cut"], to=TensorProto.INT32),
        helper.make_node("Cast", ["cut"], [rounded], to=TensorProto.FLOAT),
    ]
    del graph.node[at]
    for node in reversed(casts):
        graph.node.insert(at, node)


def truncates_float16(graph: onnx.GraphProto) -> None:
    """A float16 beyond the value is taken back to the one before it."""
    at = made_by(graph, "S_next")
    value = graph.node[at].input[0]
    graph.initializer.append(numpy_helper.from_array(np.float32(1 - 2**-11), "less"))
    node = helper.make_node
    graph.node[at].output[0] = "nearest"
    added = [
        node("Cast", ["nearest"], ["nearest32"], to=TensorProto.FLOAT),
        node("Abs", ["nearest32"], ["far"]),
        node("Abs", [value], ["true"]),
        node("Greater", ["far", "true"], ["beyond"]),
        node("Mul", ["nearest32", "less"], ["nearer32"]),
        node("Cast", ["nearer32"], ["nearer"], to=TensorProto.FLOAT16),
        node("Where", ["beyond", "nearer", "nearest"], ["S_next"]),
    ]
    for i, extra in enumerate(added):
        graph.node.insert(at + 1 + i, extra)


def holds(constant: str | float, value: float) -> Change:
    """Replace a constant, given by its name or, where it is a single number, by its value."""

    def is_meant(tensor: onnx.TensorProto) -> bool:
        if isinstance(constant, str):
            return tensor.name == constant
        array = numpy_helper.to_array(tensor)
        return array.size == 1 and array.item() == np.float32(constant)

    def change(graph: onnx.GraphProto) -> None:
        meant = [tensor for tensor in graph.initializer if is_meant(tensor)]
        assert meant
        for tensor in meant:
            tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), tensor.name))

    return change


@pytest.mark.parametrize(
    ("form", "by"), [("float16", 1e-5), ("int8", 5e-5), ("fed-back", 1e-5), ("pool", 1e-5)]
)
def test_a_last_digit_that_falls_on_the_other_side_is_let_through(
    bundles: dict[str, Bundle], form: str, by: float, tmp_path: Path
) -> None:
    seen = replayed(bundles[form], other_digits(by), tmp_path / "other")
    assert seen.passed, seen.summary
    if form == "fed-back":  # whose quantum is less than the tolerance
        assert seen.one_step is None
    else:
        assert seen.max_state_error > seen.tolerance
        assert seen.one_step is not None and 0 < seen.one_step.parted < 0.1, seen.summary


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("float16", truncates_float16),
        ("pool", truncates_float16),
        ("int8", truncates),
        ("int8", rounds_by("Floor", 0)),
        ("int8", holds(LEVELS, 126)),
        ("int8", holds("decay", 0.99)),
        ("fed-back", truncates),
        ("fed-back", rounds_by("Floor", 1)),
        ("fed-back", holds(FINER, 0)),  # nothing is left over
        ("fed-back", holds(1 / FINER, 0)),  # what was left over is not read
    ],
)
def test_wrong_arithmetic_is_refused(
    bundles: dict[str, Bundle], form: str, change: Change, tmp_path: Path
) -> None:
    seen = replayed(bundles[form], change, tmp_path / "wrong")
    assert not seen.passed, seen.summary


@pytest.mark.parametrize("form", [*FORMS, "pool"])
def test_the_same_engine_parts_nowhere(bundles: dict[str, Bundle], form: str) -> None:
    bundle = bundles[form]
    golden = bundle.golden()
    assert golden is not None and one_step(bundle, golden, "auto") == OneStep(200, 0.0, 0.0, 0)


def test_a_trail_that_writes_nothing_is_no_proof(bundles: dict[str, Bundle]) -> None:
    golden = bundles["int8"].golden()
    assert golden is not None
    quiet = next(t for t in range(199) if (golden.gates["gate"][t] <= 0).all())
    cut = {name: trail[quiet : quiet + 2] for name, trail in golden.trail.items()}
    part = Episode(
        {"x": golden.inputs["x"][quiet:]},
        outputs={"y": golden.outputs["y"][quiet:]},
        gates={"gate": golden.gates["gate"][quiet:]},
        trail=cut,
    )
    assert one_step(bundles["int8"], part, "auto") is None


def test_a_trail_takes_no_more_room_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, room, states in (("float16", 512 * 4, 4), ("float16", 512, 0), ("float32", 4096, 0)):
        monkeypatch.setattr(verify, "TRAIL_BYTES", room)
        golden = sealed(tmp_path / "b", kind, steps=20).golden()
        assert golden is not None
        assert len(golden.trail.get("S", ())) == states


@pytest.mark.parametrize("steps", [0, 1, 202])
def test_a_trail_of_another_length_is_refused(bundles: dict[str, Bundle], steps: int) -> None:
    golden = bundles["float16"].golden()
    assert golden is not None
    trail = np.resize(golden.trail["S"], (steps, 1, 8, 32))
    damaged = Episode(golden.inputs, {}, golden.outputs, golden.gates, golden.states, {"S": trail})
    with pytest.raises(EpisodeError, match="trail"):
        damaged.check(bundles["float16"].manifest.step)
