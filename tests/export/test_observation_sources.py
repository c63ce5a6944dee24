"""What exporters and simulators say about a policy's numbers becomes the bundle's contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, ObservationContract
from stategate.contract.errors import SpecError
from stategate.contract.observation import Signal, Term

JOINTS = ["hip", "knee", "ankle"]
# As mjlab and whole-body-tracking write it: comma lists, numbers with three digits.
LISTS = {
    "run_path": "team/run",
    "joint_names": ",".join(JOINTS),
    "joint_stiffness": "40.000,40.000,20.000",
    "joint_damping": "2.000,2.000,1.000",
    "default_joint_pos": "0.100,-0.200,0.000",
    "command_names": "motion",
    "observation_names": "command,joint_pos,actions",
    "observation_history_lengths": "1.000,5.000,1.000",
    "action_scale": "0.500,0.500,0.250",
}


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., Path]:
    """An ONNX policy of three joints with a memory, and metadata."""

    def write(
        metadata: dict[str, str], obs: str = "obs", action: str = "actions", size: int = 9
    ) -> Path:
        rng = np.random.default_rng(0)

        def weights(name: str, *shape: int) -> onnx.TensorProto:
            return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

        def value(name: str, size: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])

        nodes = [
            helper.make_node("Gemm", [obs, "W", "h"], ["mixed"]),
            helper.make_node("Tanh", ["mixed"], ["h_next"]),
            helper.make_node("MatMul", ["h_next", "V"], [action]),
        ]
        graph = helper.make_graph(
            nodes,
            "policy",
            [value(obs, size), value("h", 4)],
            [value(action, 3), value("h_next", 4)],
            [weights("W", size, 4), weights("V", 4, 3)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, metadata)
        path = tmp_path / "policy.onnx"
        onnx.save(model, path)
        return path

    return write


def adopted(path: Path, **options: object) -> ObservationContract | None:
    out = path.parent / "bundle"
    stategate.adopt(path, out, states={"h": "h_next"}, steps=16, **options)  # type: ignore[arg-type]
    return Bundle.open(out).manifest.observation


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_lists_of_mjlab_and_whole_body_tracking_are_read(policy: Callable[..., Path]) -> None:
    contract = adopted(policy(LISTS))
    assert contract is not None
    assert contract.joints.names == tuple(JOINTS)
    assert contract.joints.stiffness == (40, 40, 20)
    assert contract.joints.default_positions == (0.1, -0.2, 0)
    assert contract.outputs["actions"] == Signal(
        (Term(elements=tuple(JOINTS), scale=(0.5, 0.5, 0.25)),)
    )
    obs = contract.inputs["obs"]
    assert obs.names() == ("command", "joint_pos", "actions") and obs.histories() == (1, 5, 1)
    assert obs.order == "term-first"
    with pytest.raises(SpecError, match="takes 5 frames of 'joint_pos' .index 1., and the caller"):
        stategate.Session.open(
            policy(LISTS).parent / "bundle", observes=["command", "joint_pos", "actions"]
        )


def test_the_json_of_exploy_is_read(policy: Callable[..., Path]) -> None:
    metadata = {
        "model_source": "{}",
        "update_rate": "10.0",
        "obj.robot1.joint.pos": json.dumps({"names": JOINTS}),
        "output.joint_targets.legs": json.dumps(
            {"names": JOINTS, "stiffness": [1.0, 2.0, 3.0], "damping": [0.1, 0.2, 0.3]}
        ),
    }
    path = policy(metadata, "obj.robot1.joint.pos", "output.joint_targets.legs.pos", 3)
    contract = adopted(path)
    assert contract is not None and contract.rate_hz == 10 and contract.source == "exploy"
    assert contract.inputs["obj.robot1.joint.pos"].elements() == tuple(JOINTS)
    assert contract.outputs["output.joint_targets.legs.pos"].elements() == tuple(JOINTS)
    assert contract.joints.damping == (0.1, 0.2, 0.3)
    ranges = {"lin_vel_x": [-1.5, 1.5], "lin_vel_y": [-0.75, 0.75], "ang_vel_z": [-2.5, 2.5]}
    path = policy({"cmd.vel": json.dumps({"ranges": ranges})}, "cmd.vel", size=3)
    contract = adopted(path)
    assert contract is not None
    assert [term.clip for term in contract.inputs["cmd.vel"].terms] == [
        *map(tuple, ranges.values())
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"joint_stiffness": "40,forty,20"},
        {"joint_damping": "1,2"},
        {"observation_history_lengths": "5"},
        {"observation_names": "a,a,b"},
        {"action_scale": "nan,1,1"},
    ],
)
def test_metadata_that_contradicts_itself_is_noted_and_left_out(
    policy: Callable[..., Path], wrong: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = cli("adopt", policy(LISTS | wrong), "--yes", "--steps", 16, "--out", out)
    assert result.exit_code == 0 and "is not taken into the bundle" in result.output
    assert Bundle.open(out).manifest.observation is None


def test_the_environment_beside_a_training_is_read_without_running_its_tags(
    policy: Callable[..., Path], tmp_path: Path
) -> None:
    env = tmp_path / "env.yaml"
    env.write_text(
        "sim: {dt: 0.005, device: 'cuda:0'}\n"
        "decimation: 4\n"
        "observations:\n"
        "  policy:\n"
        "    concatenate_terms: true\n"
        "    history_length: null\n"
        "    base_ang_vel: {func: 'mdp:base_ang_vel', scale: 0.25, clip: null, history_length: 0}\n"
        "    joint_pos:\n"
        "      func: mdp:joint_pos_rel\n"
        "      scale: null\n"
        "      clip: !!python/tuple [-100.0, 100.0]\n"
        "      history_length: 5\n"
        "      params: !!python/object/apply:os.system ['touch ran']\n"
        "actions:\n"
        "  joint_pos: {scale: 0.5, joint_names: ['.*'], use_default_offset: true}\n"
    )
    path = policy({})
    result = cli("adopt", path, "--state", "h=h_next", "--observes", env, "--steps", 16,
                 "--out", tmp_path / "bundle")  # fmt: skip
    assert result.exit_code == 0, result.output
    contract = Bundle.open(tmp_path / "bundle").manifest.observation
    assert contract is not None and contract.rate_hz == 50 and contract.source == "env.yaml"
    assert contract.inputs["obs"] == Signal(
        (Term("base_ang_vel", scale=(0.25,)), Term("joint_pos", clip=(-100, 100), history=5)),
        "term-first",
    )
    assert contract.outputs["actions"].terms[0].scale == (0.5,)
    assert not Path("ran").exists()


def test_a_declared_file_goes_before_metadata_and_inspect_shows_it(
    policy: Callable[..., Path], tmp_path: Path
) -> None:
    declared = tmp_path / "observes.yaml"
    declared.write_text(
        "inputs:\n  obs:\n    elements: [a, b, c]\n    history: 3\n    scale: 2\n"
        "rate_hz: 50\nresets: {idle_seconds: 0.5, on_fault: true}\n"
    )
    contract = adopted(policy(LISTS), observes=declared)
    assert contract is not None
    assert contract.inputs["obs"].elements()[:4] == ("a@t-2", "b@t-2", "c@t-2", "a@t-1")
    assert contract.joints.names == tuple(JOINTS) and contract.resets.on_fault
    shown = cli("inspect", tmp_path / "bundle").output
    assert "obs: a, b, c; history of 3 frames, time-first; scale 2" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: {obs: [a, b]}\n", "2 names, history included"),
        ("inputs: {obz: [a]}\n", "an input that the model lacks"),
        ("inputs: {obs: [a, a]}\n", "two elements have one name"),
        ("rate: 50\n", "no observation contract"),
        ("inputs: [", "cannot be read"),
        ("{sim: {dt: fast}, decimation: 4}", "no configuration|is not the configuration"),
        ("a: &a [x]\nb: [*a, *a]\nb: 1\n", "cannot be read"),
    ],
)
def test_a_declared_file_that_does_not_fit_leaves_nothing_on_disk(
    policy: Callable[..., Path], tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "observes.yml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        adopted(policy({}), observes=file)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_torch_model_is_exported_with_what_it_observes(tiny: object, tmp_path: Path) -> None:
    bundle = stategate.make(
        tiny, tmp_path / "bundle", steps=16, observes=["hip", "knee", "ankle", "roll"]
    )
    assert bundle.manifest.observation is not None
    assert bundle.manifest.observation.inputs["x"].elements() == ("hip", "knee", "ankle", "roll")
    tiny.observes = ObservationContract(rate_hz=50.0)  # type: ignore[attr-defined]
    bundle = stategate.make(tiny, tmp_path / "own", steps=16)
    assert bundle.manifest.observation == ObservationContract(rate_hz=50.0)
    tiny.observes = ObservationContract(rate_hz="fast")  # type: ignore[attr-defined, arg-type]
    with pytest.raises(SpecError, match="rate_hz"):
        stategate.make(tiny, tmp_path / "odd", steps=16)
    assert not (tmp_path / "odd").exists()
