"""Exports that the package leapp wrote itself, adopted from their YAML alone."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from torch import nn

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.errors import ExportError, ParityError
from stategate.export.frontends.leapp import read_export
from stategate.export.frontends.leapp_pipeline import Merged, merge
from stategate.runtime import Session

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="leapp 0.7 is not tested there")
OBS, ACTIONS, HIDDEN = 6, 3, 16


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Lstm(nn.Module):
    """Memory in buffers that the forward pass replaces, as recurrent policies are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(OBS, HIDDEN)
        self.head = nn.Linear(HIDDEN, ACTIONS)
        self.register_buffer("hidden", torch.linspace(-1.0, 1.0, HIDDEN)[None])
        self.register_buffer("cell_state", torch.zeros(1, HIDDEN))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        self.hidden, self.cell_state = self.cell(obs * self.scale, (self.hidden, self.cell_state))
        return torch.tanh(self.head(self.hidden))


class Gru(nn.Module):
    """Memory passed in and out; the last action is remembered too."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(OBS + ACTIONS, HIDDEN)
        self.head = nn.Linear(HIDDEN, ACTIONS)

    def forward(
        self, obs: torch.Tensor, hidden: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.cell(torch.cat([obs, last], 1), hidden)
        return torch.tanh(self.head(hidden)), hidden


def traced(folder: Path, name: str, step: Callable[[], None], **configs: object) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        import leapp

        leapp.start(name, save_path=str(folder))
        step()
        leapp.stop()
        leapp.compile_graph(visualize=False, **configs)
    return folder / name / f"{name}.yaml"


@pytest.fixture(scope="module")
def lstm_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def step() -> None:
        from leapp import InputKindEnum, TensorSemantics, annotate

        torch.manual_seed(3)
        model = Lstm().eval()
        joints = [f"joint_{i}" for i in range(OBS)]
        obs = TensorSemantics(
            "obs", torch.randn(1, OBS), InputKindEnum.JOINT_POSITION, [None, joints]
        )
        obs = annotate.input_tensors("policy", obs)
        annotate.module("policy", model)
        annotate.output_tensors("policy", {"action": model(obs)}, export_with="onnx-torchscript")

    from leapp import GraphConfigs

    folder = tmp_path_factory.mktemp("leapp")
    return traced(folder, "lstm", step, graph_configs=GraphConfigs(frequency=50.0))


@pytest.fixture(scope="module")
def gru_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def step() -> None:
        from leapp import annotate

        torch.manual_seed(4)
        model = Gru().eval()
        obs = annotate.input_tensors("policy", {"obs": torch.randn(1, OBS)})
        states = {"hidden": torch.zeros(1, HIDDEN), "last": torch.zeros(1, ACTIONS)}
        hidden, last = annotate.state_tensors("policy", states)
        action, hidden = model(obs, hidden, last)
        annotate.update_state("policy", {"hidden": hidden, "last": action * 1.0})
        annotate.output_tensors("policy", {"action": action}, export_with="onnx")

    return traced(tmp_path_factory.mktemp("leapp"), "gru", step)


@pytest.fixture
def copied(lstm_yaml: Path, tmp_path: Path) -> Callable[..., Path]:
    """The LSTM's export, its YAML changed by a function."""

    return lambda change=lambda _: None: rewired(lstm_yaml, tmp_path, change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "states"),
    [
        ("lstm_yaml", {"hidden_in": "hidden_out", "cell_state_in": "cell_state_out"}),
        ("gru_yaml", {"hidden_in": "hidden_out", "last_in": "last_out"}),
    ],
)
def test_an_adopted_export_steps_as_leapps_own_runtime(
    fixture: str, states: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(fixture)
    result = cli("adopt", path, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(tmp_path / "b").manifest
    assert {s.name: s.next_name for s in manifest.states} == states
    assert manifest.model.name == path.stem and manifest.model.source == f"{path.name}:policy.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from leapp import InferenceManager

        theirs = InferenceManager(str(path))
    rng = np.random.default_rng(5)
    with Session.open(tmp_path / "b") as session:
        for obs in rng.standard_normal((200, 1, OBS)).astype(np.float32):
            wanted = theirs({"policy/obs": torch.from_numpy(obs)})["policy/action"]
            np.testing.assert_allclose(session.step(obs=obs)["action"], wanted, atol=1e-6)


@pytest.mark.slow
def test_states_start_with_the_initial_values_of_the_export(
    lstm_yaml: Path, tmp_path: Path
) -> None:
    assert cli("adopt", lstm_yaml, "--out", tmp_path / "b").exit_code == 0
    with Session.open(tmp_path / "b") as session:
        start = torch.linspace(-1.0, 1.0, HIDDEN)[None].numpy()
        np.testing.assert_array_equal(session.state("hidden_in"), start)
        assert not session.state("cell_state_in").any()
    start_anew = ["--init", "hidden_in=0", "--init", "cell_state_in=0.5"]
    assert cli("adopt", lstm_yaml, *start_anew, "--out", tmp_path / "b").exit_code == 0
    with Session.open(tmp_path / "b") as session:
        assert not session.state("hidden_in").any()
        assert (session.state("cell_state_in") == 0.5).all()


@pytest.mark.slow
def test_what_the_export_says_of_its_tensors_is_kept(lstm_yaml: Path, tmp_path: Path) -> None:
    assert cli("adopt", lstm_yaml, "--out", tmp_path / "b").exit_code == 0
    facts = Bundle.open(tmp_path / "b").manifest.metadata
    assert facts["leapp.version"] == "0.7.2" and facts["leapp.node"] == "policy"
    assert facts["leapp.frequency_hz"] == "50"
    assert facts["leapp.input.obs.kind"] == "state/joint/position"
    names = json.loads(facts["leapp.input.obs.element_names"])
    assert names == [None, [f"joint_{i}" for i in range(OBS)]]
    contract = Bundle.open(tmp_path / "b").manifest.observation
    assert contract is not None and contract.rate_hz == 50
    assert contract.inputs["obs"].elements() == tuple(f"joint_{i}" for i in range(OBS))
    assert "leapp.input.obs.kind: state/joint/position" in cli("inspect", tmp_path / "b").stdout


@pytest.fixture(scope="module")
def pipeline_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filter and a policy whose states have one name; the filter reads the last action too."""

    def step() -> None:
        from leapp import annotate

        torch.manual_seed(5)
        cell, head = nn.GRUCell(OBS, HIDDEN), nn.Linear(HIDDEN, OBS)
        before = {"memory": torch.ones(1, OBS), "last": torch.zeros(1, OBS)}
        obs = annotate.input_tensors("filter", {"obs": torch.randn(1, OBS)})
        memory, last = annotate.state_tensors("filter", before)
        memory = 0.9 * memory + 0.1 * obs - 0.3 * last
        annotate.update_state("filter", {"memory": memory, "last": obs * 1.0})
        out = annotate.output_tensors("filter", {"seen": torch.sin(memory)}, export_with="onnx")
        seen = annotate.input_tensors("policy", {"seen": out})
        hidden = annotate.state_tensors("policy", {"memory": torch.zeros(1, HIDDEN)})
        hidden = cell(seen, hidden)
        annotate.update_state("policy", {"memory": hidden})
        outputs = {"action": torch.tanh(head(hidden)), "wish": hidden[:, :2] * 2.0}
        annotate.output_tensors("policy", outputs, export_with="onnx-torchscript")

    return traced(tmp_path_factory.mktemp("leapp"), "two", step)


def rewired(path: Path, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of an export, its YAML changed by a function."""
    for file in path.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    document = yaml.safe_load(path.read_text())
    change(document)
    (folder / path.name).write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / path.name


def action_comes_back(document: dict) -> None:
    """The policy's action becomes what the filter calls its last observation; and stays one."""
    flow = document["pipeline"]["feedback_flow"]
    flow["policy/action"] = flow.pop("filter/last_out")
    document["pipeline"]["outputs"] = {"policy": ["action", "wish"], "filter": ["seen", "last_out"]}


@pytest.mark.parametrize("change", [lambda document: None, action_comes_back])
def test_a_pipeline_of_two_nodes_is_one_step_as_leapp_runs_it(
    change: Callable[[dict], object], pipeline_yaml: Path, tmp_path: Path
) -> None:
    from leapp import InferenceManager

    path = rewired(pipeline_yaml, tmp_path, change)
    result = cli("adopt", path, "--steps", 50, "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(tmp_path / "b").manifest
    assert "each node's own file" in result.output
    states = {"filter_memory_in", "last_in", "policy_memory_in"}
    assert {state.name for state in manifest.states} == states
    assert manifest.metadata["leapp.node"] == "filter, policy"
    rng = np.random.default_rng(6)
    with Session.open(tmp_path / "b") as session:
        for length in (1, 150, 49):
            theirs = InferenceManager(str(path))
            session.reset()
            for obs in rng.standard_normal((length, 1, OBS)).astype(np.float32):
                wanted = theirs({"filter/obs": torch.from_numpy(obs)})
                outputs = session.step(obs=obs)
                assert {*outputs} == {port.partition("/")[2] for port in wanted}
                for port, value in wanted.items():
                    np.testing.assert_allclose(
                        outputs[port.partition("/")[2]], value.detach(), atol=1e-5
                    )


def flows(document: dict) -> tuple[dict, dict]:
    return document["pipeline"]["data_flow"], document["pipeline"]["feedback_flow"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            lambda d: flows(d)[0].update({"policy/action": flows(d)[1].pop("filter/last_out")}),
            "data flows in a circle",
        ),
        (
            lambda d: flows(d)[1].update({"filter/seen": flows(d)[0].pop("filter/seen")}),
            "runs later in the same step",
        ),
        (lambda d: flows(d)[0].update({"policy/wish": ["filter/last_in"]}), "two edges lead to"),
        (lambda d: flows(d)[0].update({"eyes/seen": ["policy/seen"]}), "two edges lead to"),
        (lambda d: flows(d)[0].update({"filter/seen": ["arm/seen"]}), "arm/seen in data_flow"),
        (lambda d: flows(d)[0].update({"filter": ["policy/seen"]}), "two edges lead to"),
        (
            lambda d: flows(d)[1].update({"policy/wish": flows(d)[1].pop("filter/last_out")}),
            "FLOAT [1, 2]",
        ),
        (lambda d: flows(d)[1].clear(), "feeds nothing back"),
        (lambda d: d["models"]["filter"]["parameters"].update(backend="jit"), "'filter' is no"),
        (
            lambda d: d["models"]["filter"]["parameters"].update(model_path="policy.onnx"),
            "not the file that",
        ),
    ],
)
def test_a_pipeline_whose_edges_do_not_fit_is_refused_by_name(
    change: Callable[[dict], object], finding: str, pipeline_yaml: Path, tmp_path: Path
) -> None:
    path = rewired(pipeline_yaml, tmp_path, change)
    result = cli("adopt", path, "--out", tmp_path / "b")
    assert result.exit_code == 2 and finding in result.output, result.output
    assert not (tmp_path / "b").exists()


def test_hidden_memory_of_a_pipeline_is_not_lifted(pipeline_yaml: Path, tmp_path: Path) -> None:
    result = cli("adopt", pipeline_yaml, "--lift", "--out", tmp_path / "b")
    assert result.exit_code == 2 and "found: filter, policy" in result.output


def test_a_wrong_merge_is_found_by_the_nodes_own_files(
    pipeline_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object) -> Merged:
        merged = merge(*arguments)
        (sine,) = (node for node in merged.model.graph.node if node.op_type == "Sin")
        sine.op_type = "Cos"
        return merged

    monkeypatch.setattr("stategate.export.frontends.leapp.merge", wrong)
    with pytest.raises(ParityError):
        stategate.adopt(pipeline_yaml, tmp_path / "b", steps=10)
    assert not (tmp_path / "b").exists()


def test_a_graph_without_feedback_and_a_torchscript_node_are_refused(tmp_path: Path) -> None:
    def plain() -> None:
        from leapp import annotate

        obs = annotate.input_tensors("policy", {"obs": torch.randn(1, OBS)})
        annotate.output_tensors("policy", {"action": torch.tanh(obs)}, export_with="onnx")

    def jit() -> None:
        from leapp import annotate

        obs = annotate.input_tensors("policy", {"obs": torch.randn(1, OBS)})
        annotate.output_tensors("policy", {"action": torch.tanh(obs)}, export_with="jit")

    with pytest.raises(ExportError, match="feeds nothing back"):
        read_export(traced(tmp_path, "plain", plain))
    with pytest.raises(ExportError, match="backend jit, policy.pt"):
        read_export(traced(tmp_path, "jit", jit))


def test_declared_states_beside_a_yaml_are_refused(lstm_yaml: Path, tmp_path: Path) -> None:
    pair = ["--state", "hidden_in=hidden_out"]
    result = cli("adopt", lstm_yaml, *pair, "--out", tmp_path / "b")
    assert result.exit_code == 2 and "names its states itself" in result.output


def node(document: dict) -> dict:
    return document["models"]["policy"]


def edges(document: dict) -> dict:
    return document["pipeline"]["feedback_flow"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda d: d.pop("models"), "missing required field `models`"),
        (lambda d: d.update(models=[1]), "Expected `object`, got `array`"),
        (lambda d: d.update(models={}), "has no node"),
        (lambda d: node(d)["parameters"].update(model_path=7), "got `int`"),
        (lambda d: node(d)["parameters"].update(model_path=None), "backend onnx, None"),
        (lambda d: node(d)["parameters"].update(model_path="../x.onnx"), "outside its folder"),
        (lambda d: node(d)["parameters"].update(model_path="/etc/passwd"), "outside its folder"),
        (lambda d: node(d)["parameters"].update(model_path="a\0b"), "control character"),
        (lambda d: node(d)["parameters"].update(model_path="gone.onnx"), "gone.onnx"),
        (lambda d: node(d)["parameters"].update(model_path="log.txt"), "not the file that"),
        (lambda d: node(d)["parameters"].update(sha256sum=None), "not the file that"),
        (lambda d: node(d)["inputs"][0].update(shape="[1, 6]"), "Expected `array`"),
        (lambda d: node(d)["inputs"][0].update(shape=[1, 7]), "cannot take this shape"),
        (lambda d: node(d)["inputs"][0].update(name="eyes"), "no such input"),
        (lambda d: edges(d).clear(), "feeds nothing back"),
        (lambda d: edges(d).update({"policy/action": "policy/x"}), "Expected `array`"),
        (lambda d: edges(d).update({"policy/action": ["policy/x"]}), "no input 'x'"),
        (lambda d: edges(d).update({"policy/x": ["policy/obs"]}), "no output 'x'"),
        (
            lambda d: edges(d).update({"policy/action": ["policy/obs"]}),
            "has to feed the other",
        ),
        (lambda d: edges(d).update({"policy/action": ["arm/obs"]}), "leads nowhere"),
        (lambda d: edges(d).update({"policy": ["policy/obs"]}), "leads nowhere"),
        (lambda d: edges(d).update({"policy/action": ["policy/hidden_in"]}), "two edges lead to"),
        (
            lambda d: edges(d)["policy/hidden_out"].append("policy/cell_state_in"),
            "two edges lead to",
        ),
        (
            lambda d: d["pipeline"].update(data_flow={"a/b": ["c/d"]}),
            "data flows in a circle within the only node",
        ),
        (lambda d: d["pipeline"].update(initial_values="../v"), "outside its folder"),
        (lambda d: d["pipeline"].update(initial_values="policy.onnx"), "holds no initial values"),
        (lambda d: d["pipeline"].update(initial_values="none"), "cannot be read"),
    ],
)
def test_a_yaml_that_lies_is_refused_in_words(
    copied: Callable[..., Path], change: Callable[[dict], object], finding: str
) -> None:
    path = copied(change)
    result = cli("adopt", path, "--out", path.parent / "b")
    assert result.exit_code == 2 and finding in result.output, result.output
    assert not (path.parent / "b").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"just text",
        b"models: [",
        b"\xff\xfe\x00",
        b"models: !!python/object/apply:os.system ['touch hacked']",
        b"[" * 20000,
        b"? {a: 1}\n: 2",
        b"x: 2024-13-45",
        b"!!timestamp later",
        b"!!bool maybe",
    ],
)
def test_a_file_that_is_no_yaml_of_leapp_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(raw)
    result = cli("adopt", path, "--out", tmp_path / "b")
    assert result.exit_code == 2 and "is not the YAML of a LEAPP export" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_and_a_missing_yaml_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dir.yaml").mkdir()
    for name in ("dir.yaml", "missing.yaml"):
        assert "is not the YAML" in cli("adopt", tmp_path / name, "--out", tmp_path / "b").output


def test_links_that_leave_the_folder_are_not_followed(
    copied: Callable[..., Path], lstm_yaml: Path
) -> None:
    path = copied()
    (path.parent / "policy.onnx").unlink()
    (path.parent / "policy.onnx").symlink_to(lstm_yaml.parent / "policy.onnx")
    with pytest.raises(ExportError, match="outside its folder"):
        read_export(path)


def test_initial_values_of_an_input_that_is_no_state_are_refused(
    copied: Callable[..., Path],
) -> None:
    path = copied(lambda d: d["pipeline"].update(initial_values="v.safetensors"))
    save_file({"policy/obs": np.zeros((1, OBS), np.float32)}, path.parent / "v.safetensors")
    result = cli("adopt", path, "--out", path.parent / "b")
    assert result.exit_code == 2 and "an input that is no state" in result.output
