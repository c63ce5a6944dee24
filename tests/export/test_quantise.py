"""Precision plans: what they make smaller, what they leave alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stategate.cli.main import main
from stategate.contract import Bundle, Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import (
    CalibrationError,
    ExportError,
    ParityError,
    SpecError,
    TargetError,
)
from stategate.contract.precision import PRESETS, PrecisionPlan, RangeRecord
from stategate.export.frontends.trace import trace
from stategate.export.passes.projections import projections
from stategate.export.passes.quantise import quantised
from stategate.export.seal.verify import Limits, verify
from stategate.models.load import load_model
from stategate.runtime import Session
from stategate.targets import load

Traced = tuple[onnx.ModelProto, StepSpec]
LOWER = [name for name in PRESETS if name != "float32"]


@pytest.fixture(scope="module")
def aura() -> Traced:
    model = load_model("aura-hard").model
    return trace(model), model.step_spec()


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def limits_for(traced: Traced) -> dict[str, float]:
    return {p.data: 6.0 for p in projections(*traced)}


def roles(name: str) -> dict[str, str]:
    model = load_model(name).model
    return {p.group: p.role for p in projections(trace(model), model.step_spec())}


def test_what_computes_a_gate_is_found_by_the_graph(aura: Traced) -> None:
    found = {p.group: p.role for p in projections(*aura)}
    gates = {"gate_in", "gate_hidden", "gate_residual", "gate_out"}
    assert {name for name, role in found.items() if role == "gates"} == gates
    assert set(found) - gates == {
        "encode", "to_k", "to_q", "to_v", "to_beta", "head_in", "head_out",
    }  # fmt: skip
    assert "recurrence" not in found.values()


@pytest.mark.slow
def test_a_projection_that_feeds_a_state_back_to_itself_is_recurrence() -> None:
    found = roles("trim-kv")  # all layers share one tensor of keys, so layer 0 leads back to it
    assert found["layers.0.to_out"] == "recurrence"
    assert found["layers.1.to_out"] == found["layers.0.to_q"] == ""


@pytest.mark.parametrize("preset", LOWER)
def test_gates_keep_their_weights_and_everything_else_loses_them(aura: Traced, preset: str) -> None:
    model, spec = aura
    done = quantised(model, spec, PRESETS[preset], limits_for(aura))
    before, after = arrays(model), arrays(done)
    left = {name for name, a in after.items() if a.dtype == np.float32 and a.ndim == 2}
    kept = [a for name, a in after.items() if name in left and a.size > 100]
    gates = [p for p in projections(*aura) if p.role == "gates" and p.elements > 100]
    for projection in gates:
        weight = before[projection.weight]
        assert any(np.array_equal(weight, a) or np.array_equal(weight.T, a) for a in kept)
    scales = {name for name in left if "scale" in name}
    big = {name for name in left - scales if after[name].size > 100}
    assert len(big) == len(gates)
    assert done.ByteSize() < 0.7 * model.ByteSize()


def test_weights_in_int8_are_within_half_a_step_of_their_channel(aura: Traced) -> None:
    model, spec = aura
    done = quantised(model, spec, PRESETS["int8-weights"])
    before, after = arrays(model), arrays(done)
    checked = 0
    for node in done.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        stored, scale, zero = (after[name] for name in node.input)
        original = before[node.input[0].removesuffix("_Transposed_quantized")].T
        assert stored.dtype == np.int8 and not zero.any() and scale.shape == (stored.shape[1],)
        assert np.abs(stored * scale - original).max() <= 0.5001 * scale.max()
        assert (np.abs(stored * scale - original) <= 0.5001 * scale).all()
        checked += 1
    assert checked == 7


def test_activations_are_symmetric_and_the_graph_stays_at_its_opset(aura: Traced) -> None:
    done = quantised(*aura, PRESETS["int8"], limits_for(aura))
    values = arrays(done)
    pairs = [node for node in done.graph.node if node.op_type == "QuantizeLinear"]
    assert {node.input[0] for node in pairs} == {"z", "silu", "cat", "silu_3"}
    (gate_in,) = [n for n in done.graph.node if "model.gate_in.weight_Transposed" in n.input]
    assert gate_in.input[0] == "z"  # and not what the projections make of it
    for node in pairs:
        assert values[node.input[1]] == pytest.approx(6.0 / 127, rel=1e-3)
        assert values[node.input[2]].dtype == np.int8 and values[node.input[2]] == 0
    assert [(o.domain, o.version) for o in done.opset_import] == [("", 20)]


def constant_weights() -> Traced:
    """A step whose weight sits in a Constant node, where ONNX Runtime's quantisers do not look."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["y"], "project"),
        helper.make_node("Add", ["y", "h"], ["h_next"]),
    ]
    values = {n: helper.make_tensor_value_info(n, 1, [1, 4]) for n in ("x", "h", "y", "h_next")}
    graph = helper.make_graph(
        nodes, "g", [values["x"], values["h"]], [values["y"], values["h_next"]]
    )
    spec = StepSpec(
        (TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),), (StateSpec("h", (1, 4)),)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), spec


@pytest.mark.parametrize("preset", LOWER)
def test_a_plan_that_would_do_nothing_is_refused_with_the_count(preset: str) -> None:
    with pytest.raises(ExportError, match=r"quantises nothing\n  found: 0 projections"):
        quantised(*constant_weights(), PRESETS[preset], {})


def test_a_plan_that_keeps_all_or_names_the_unknown_is_refused(aura: Traced) -> None:
    with pytest.raises(ExportError, match="11 projections, 11 of them kept"):
        quantised(*aura, PrecisionPlan(weights="int8", keep_float=("*",)))
    with pytest.raises(SpecError, match=r"found: to_x\n  expected: encode, gate_hidden"):
        quantised(*aura, PrecisionPlan(weights="int8", keep_float=("to_x",)))


def test_activations_without_their_ranges_are_refused(aura: Traced) -> None:
    with pytest.raises(CalibrationError, match="stategate model ranges"):
        quantised(*aura, PRESETS["int8"])
    with pytest.raises(CalibrationError, match="3 missing: cat, silu_3, z"):
        quantised(*aura, PRESETS["int8"], {"silu": 1.0})
    record = RangeRecord("a" * 64, ("log",), 10, ())
    with pytest.raises(CalibrationError, match="another model"):
        record.limits("b" * 64, "minmax")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('{"weights": "fp8"}', "fp8"),
        ('{"weight": "int8"}', "weight"),
        ('{"activations": "int8"}', "weights in int8"),
        ('{"weights": "int8", "error_feedback": true}', "nothing to feed back"),
        ("not json", "malformed"),
    ],
)
def test_a_plan_that_is_none_is_refused_with_the_finding(
    tmp_path: Path, text: str, finding: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=finding):
        PrecisionPlan.named(str(path))


def test_plans_have_the_names_of_their_presets(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for name, plan in PRESETS.items():
        path.write_bytes(msgspec.json.encode(plan))
        assert PrecisionPlan.named(str(path)) == PrecisionPlan.named(name)
        assert PrecisionPlan.named(name).label == name
    assert PrecisionPlan(weights="int4", keep_float=("a",)).label == "int4-weights (own plan)"
    with pytest.raises(SpecError, match="int5"):
        PrecisionPlan.named("int5")


def test_a_target_refuses_what_it_is_not_known_to_run() -> None:
    with pytest.raises(TargetError, match=r"raspberry-pi-5 does not run int4"):
        load("raspberry-pi-5").check(PRESETS["int4-weights"])
    load("cpu-x86-64").check(PRESETS["int4-weights"])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A model of one's own, and a recording for it."""
    source = (Path(__file__).parents[1] / "conftest.py").read_text()
    (tmp_path / "mine.py").write_text(source)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((300, 1, 4)).astype(np.float32)
    (tmp_path / "log.npz").write_bytes(Episode({"x": x}).to_bytes())
    names = ("float", "small", "ranges.json")
    return {name: str(tmp_path / name) for name in names} | {
        "model": f"{tmp_path}/mine.py:Tiny",
        "log": str(tmp_path / "log.npz"),
    }


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


def test_from_a_float_bundle_to_one_in_int8(files: dict[str, str]) -> None:
    common = ["--episode", files["log"], "--steps", "200"]
    assert run("export", files["model"], *common, "--out", files["float"])[0] == 0
    code, told = run(
        "ranges", files["float"], "--episode", files["log"], "--out", files["ranges.json"]
    )
    assert code == 0, told
    small = ["export", files["model"], *common, "--precision", "int8", "--out", files["small"]]
    assert run(*small)[0] == 1  # without ranges
    code, told = run(*small, "--ranges", files["ranges.json"])
    assert code == 0, told
    manifest = Bundle.open(files["small"]).manifest
    assert manifest.step_graph.precision == "int8"
    receipt = manifest.verification
    assert receipt is not None
    assert 1e-4 < receipt.max_output_error < 0.05
    assert (receipt.tolerance, receipt.flip_rate, receipt.accepted) == (None, 0.0, None)
    code, told = run("verify", files["small"])
    assert code == 1 and "a candidate; judge it" in told
    again = ["--episode", files["log"], "--out", files["ranges.json"]]
    code, told = run("ranges", files["small"], *again)
    assert code == 1 and "float model alone" in told


@pytest.mark.slow
def test_a_candidate_beyond_its_limits_needs_somebody_who_takes_it(files: dict[str, str]) -> None:
    arguments = [
        "export", files["model"], "--episode", files["log"], "--steps", "100",
        "--precision", "int8-weights", "--max-output-error", "1e-6", "--out", files["small"],
    ]  # fmt: skip
    code, told = run(*arguments)
    assert code == 1 and "parts from torch" in told and not Path(files["small"]).exists()
    code, told = run(*arguments, "--accept", "because")
    assert code == 2 and "WHO: WHY" in told
    code, told = run(*arguments, "--accept", "Ada: a toy", "--json")
    assert code == 0, told
    accepted = json.loads(told[told.index("{") :])["verification"]["accepted"]
    assert accepted.startswith("Ada: a toy (overruled: output error 0.")


class Broken:
    """A model that answers with NaN."""

    name = "a broken model"

    def step(self, inputs: dict) -> tuple[dict, dict, dict]:
        nan = np.full((1, 4), np.nan, np.float32)
        return {"y": nan}, {}, {"gate": inputs["x"][:, :1]}


def test_nobody_can_accept_what_is_no_number(tiny_bundle: Path) -> None:
    episode = Episode({"x": np.ones((5, 1, 4), np.float32)})
    with pytest.raises(ParityError, match="gives NaN or Inf: output 'y' in 5 of 5 steps"):
        verify(tiny_bundle, Broken(), episode, Limits(1e9, 1.0, "Ada: a toy"))


@pytest.mark.slow
def test_a_candidate_whose_integer_states_part_from_the_model_can_be_opened_and_judged(
    tmp_path: Path,
) -> None:
    """One admission decided otherwise leaves another stamp, and integers part without measure."""
    out = tmp_path / "b"
    command = ["export", "trim-kv", "--precision", "float16-weights", "--out", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "state error without measure" in result.output
    receipt = Bundle.open(out).manifest.verification
    assert receipt is not None
    assert receipt.max_state_error is None
    assert receipt.gate_flips > 0


@pytest.mark.slow
def test_weights_in_int8_leave_activations_in_float32(tmp_path: Path) -> None:
    """By default ONNX Runtime quantises the activations of a product with integer weights."""
    out = tmp_path / "b"
    command = ["export", "aura-hard", "--precision", "int8-weights", "--split", "fused"]
    assert CliRunner().invoke(main, [*command, "--out", str(out)]).exit_code == 0
    bundle = Bundle.open(out)
    oracle = ReferenceEvaluator(onnx.load_from_string(bundle.read(bundle.manifest.step_graph.file)))
    spec, rng = bundle.manifest.step, np.random.default_rng(0)
    z = rng.standard_normal((1, 64)).astype(np.float32)
    feeds = {n: np.zeros(t.shape, t.dtype) for n, t in spec.graph_inputs().items()}
    feeds |= {c.name: np.full(c.shape, c.value, c.dtype) for c in spec.fixed_inputs} | {"z": z}
    names = list(spec.graph_outputs())
    right = dict(zip(names, oracle.run(names, feeds), strict=True))
    with Session.open(out, engine="onnxruntime") as session:
        ours = session.step(z=z)
        np.testing.assert_allclose(ours["action"], right["action"], atol=1e-5)
        np.testing.assert_allclose(session.gates["gate"], right["gate"], atol=1e-5)
