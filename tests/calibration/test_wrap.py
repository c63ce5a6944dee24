"""A frozen backbone gets a memory: what is learned, and what is refused with nothing left."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

import stategate
from stategate.calibration.gates.scan import hard_gate
from stategate.calibration.settings import WrapRecipe
from stategate.calibration.wrap.backbone import Backbone as OpenedBackbone
from stategate.calibration.wrap.backbone import checked_features, opened
from stategate.calibration.wrap.judging import Tally, as_often, tallied
from stategate.calibration.wrap.recordings import Stream
from stategate.calibration.wrap.report import WrapReport
from stategate.calibration.wrap.results import Parts, Results, chosen
from stategate.calibration.wrap.training import Lesson, chunk_for, joined
from stategate.calibration.wrap.wrap import train_memory
from stategate.cli.main import main
from stategate.contract import Episode, TensorSpec
from stategate.contract.errors import CalibrationError, EpisodeError, StategateError
from stategate.models.memories.wrapped import RememberingPolicy
from stategate.models.step import commit, initial_states, threshold_inputs
from stategate.runtime import Session

STEPS, SIZE = 4096, 12


def cued(seed: int, steps: int = STEPS, easy: bool = False) -> tuple[NDArray[np.float32], ...]:
    """Observations ``(steps, 1, 12)`` that show one of three values now and then, and ask for it.

    With ``easy`` the value stands in the question.
    """
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.standard_normal((steps, 1, SIZE)).astype(np.float32)
    label = np.full(steps, -1, np.int64)
    value = None
    for t, kind in enumerate(rng.random(steps)):
        if kind < 0.08 or value is None:
            value = int(rng.integers(3))
            x[t, 0, value] += 2.0
        elif kind < 0.28:
            x[t, 0, 4] += 2.0
            x[t, 0, 5 + value] += 2.0 * easy
            label[t] = value
        elif kind < 0.58:  # of no use
            x[t, 0, 8 + int(rng.integers(4))] += 2.0
    return x, label


def recordings(count: int = 3, steps: int = STEPS, **options: bool) -> list[Episode]:
    """Labelled episodes for a backbone that takes ``x``."""
    drawn = (cued(seed, steps, **options) for seed in range(count))
    return [Episode({"x": x}, {"action": label}) for x, label in drawn]


class Backbone(nn.Module):
    """Frozen and random: 16 features."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(SIZE, 16), nn.Tanh(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.net(x)
        return answer


class Counting(Backbone):
    """A backbone with a memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class TwoAnswers(Backbone):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return x, x


class Blind(Backbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * 0.0


class Infinite(Backbone):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / (x[:, :1] > 1.9).logical_not()


def numbers(form: str) -> list[Episode]:
    """Recordings with something wrong about them."""
    x, label = cued(0)
    if form == "flat":
        return [Episode({"x": x[:, 0]}, {"action": label})] * 2
    if form == "other label":
        return [Episode({"x": x}, {"act": label})] * 2
    if form == "matrix":
        return [Episode({"x": x, "action": np.zeros((STEPS, 2), np.int64)})] * 2
    assert form == "two inputs"
    return [Episode({"x": x, "speed": x}, {"action": label})] * 2


@pytest.mark.parametrize(
    ("backbone", "episodes", "options", "expected"),
    [
        (Backbone, lambda: recordings(1), {}, r"too short.*4,096 steps.*8,000"),
        (Backbone, lambda: recordings(easy=True), {}, r"hardly a label needs memory"),
        (Backbone, lambda: numbers("flat"), {}, r"leading axis of 1.*array\[:, None\]"),
        (Backbone, lambda: numbers("other label"), {}, r"no labels of this name.*label\.act.*--l"),
        (Backbone, lambda: numbers("matrix"), {}, r"neither classes nor numbers"),
        (Backbone, lambda: numbers("two inputs"), {}, r"does not take.*speed, x; forward\(x\)"),
        (Backbone, recordings, {"actions": 2}, r"no index into the actions.*0 to 2|-1 to 2"),
        (Backbone, recordings, {"threshold": 1.0}, r"above 0 loses"),
        (Backbone, recordings, {"iterations": 3}, r"iterations is out of its range.*3"),
        (Counting, recordings, {}, r"other features for the same inputs.*memory of its own"),
        (TwoAnswers, recordings, {}, r"one tensor.*tuple"),
        (Blind, recordings, {}, r"features never change"),
        (Infinite, recordings, {}, r"not finite.*step \d+"),
        (lambda: 3, recordings, {}, r"no backbone.*int"),
        ("nowhere.py:policy", recordings, {}, r"no such Python file.*nowhere\.py"),
        (None, recordings, {}, r"without a backbone.*input\.x.*input\.features"),
    ],
)
def test_what_cannot_get_a_memory_is_refused_and_nothing_is_left(
    tmp_path: Path, backbone, episodes, options, expected: str
) -> None:
    out = tmp_path / "wrapped"
    with pytest.raises(StategateError, match=f"(?s){expected}"):
        stategate.wrap(backbone, episodes(), out, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_memory_that_does_not_learn_is_refused_with_the_figures(tmp_path: Path) -> None:
    # Labels that nothing shows: no memory helps.
    x, label = cued(0)
    noise = np.where(label >= 0, np.random.default_rng(1).integers(3, size=STEPS), -1)
    episodes = [Episode({"x": x}, {"action": noise})] * 3
    with pytest.raises(CalibrationError, match=r"(?s)not learned.*after 12 iterations.*every \d"):
        stategate.wrap(Backbone, episodes, tmp_path / "out", iterations=20, chunk=16)
    assert not list(tmp_path.iterdir())


def test_recordings_are_not_forgotten_where_the_bundle_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StategateError, match="in the way"):
        stategate.wrap(Backbone, recordings(), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_scores_of_the_table_are_those_of_the_step_itself() -> None:
    """Oracle: the step, one observation after another, by the write rule of the contract."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        policy = RememberingPolicy(SIZE, 3, threshold=-0.1).eval()
    nn.init.zeros_(policy.memory.gate_out.bias)
    nn.init.normal_(policy.memory.gate_out.weight)
    streams, scores = [], []
    for seed, steps in ((0, 100), (1, 150)):
        x, label = cued(seed, steps)
        data = joined([Stream(torch.from_numpy(x[:, 0]), torch.from_numpy(label))], policy)
        streams.append(data._replace(hard=data.easy))
        states, spec = initial_states(policy), policy.step_spec()
        writes = wrong = 0
        for t in range(steps):
            inputs = {"features": torch.from_numpy(x[t]), **threshold_inputs(spec)}
            with torch.no_grad():
                result = policy.step(inputs, states)
            states = commit(spec, states, result)
            writes += bool(result.gates["gate"] > -0.1)
            wrong += label[t] >= 0 and int(result.outputs["action"].argmax()) != label[t]
        scores.append((writes, wrong))
    tally = tallied(policy, streams, {"gate": hard_gate(-0.1)})["gate"]
    assert 0 < tally.writes.sum() < 250
    assert (tally.writes.sum(), tally.wrong.sum()) == tuple(map(sum, zip(*scores, strict=True)))
    assert (tally.steps.sum(), len(tally.steps)) == (250, 8)  # two streams in four pieces each


def test_a_recording_begins_with_an_empty_memory_in_training() -> None:
    policy = RememberingPolicy(SIZE, 3)
    parts = [Stream(torch.zeros(n, SIZE), torch.zeros(n, dtype=torch.int64)) for n in (5, 3, 4)]
    assert joined(parts, policy).begins.nonzero().flatten().tolist() == [0, 5, 8]


def test_schedules_write_as_often_as_they_are_asked_to() -> None:
    rules = as_often(0.07, seed=0)
    for rule in rules.values():
        writes = torch.cat([rule(t, torch.zeros(4, 1)) for t in range(3000)])
        assert float(writes.mean()) == pytest.approx(0.07, abs=0.006)


def test_a_memory_that_begins_again_has_other_weights_and_the_same_features() -> None:
    policy = RememberingPolicy(200, 3)
    policy.mean.fill_(7.0)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    features = torch.zeros(5, 200)
    data = joined([Stream(features, torch.zeros(5, dtype=torch.int64))], policy)
    Lesson(policy, data, WrapRecipe(), 64, error=0.35).begin_again()
    after = policy.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert {"mean", "scale", "action_mean", "action_scale"} <= same
    assert not {name for name in same if name.endswith("weight")}


def test_a_memory_that_has_learned_a_part_only_is_warned_of() -> None:
    def warnings_of(error: float) -> list[str]:
        rules = {"gate": tally(error), "always": tally(error)}
        results = Results(0.15, tally(0.7), 64, 0.1, 1500, 300, -2.0, rules, {}, 0.005)
        streams = [Stream(torch.zeros(70_000, 4), torch.zeros(70_000, dtype=torch.int64))]
        backbone = OpenedBackbone("x", "digest", None, None, (), lambda inputs: inputs["x"])
        policy = RememberingPolicy(4, 3)
        return list(results.report(policy, backbone, Parts(streams, streams), 1.0).warnings)

    assert not warnings_of(0.01)
    (warning,) = warnings_of(0.39)
    assert re.search(r"a part only: error 0\.390.*0\.700 without", warning)


@pytest.mark.parametrize(("rate", "chunk"), [(0.15, 64), (0.06, 128), (0.02, 512), (0.001, 512)])
def test_a_chunk_holds_about_eight_hard_labels(rate: float, chunk: int) -> None:
    assert chunk_for(rate) == chunk


def tally(wrong: float, rate: float = 0.1) -> Tally:
    pieces = np.full(8, 1000.0)
    return Tally(pieces * rate, pieces, pieces * wrong, pieces, False)


def test_the_threshold_of_zero_is_for_long_recordings_and_none_for_too_large_a_loss() -> None:
    curve = {0.0: tally(0.012), -2.0: tally(0.011), -4.0: tally(0.010)}
    assert chosen(curve, tally(0.010), 0.005, longest=8192) == 0.0
    assert chosen(curve, tally(0.010), 0.005, longest=4096) == -2.0
    assert chosen(curve, tally(0.010), 0.0005, longest=8192) == -4.0
    assert chosen(curve, tally(0.001), 0.0005, longest=8192) is None
    silent = {0.0: tally(0.01, rate=0.0)}
    assert chosen(silent, tally(0.01), 0.005, longest=8192) is None


def test_whoever_stops_it_finds_nothing(tmp_path: Path) -> None:
    stages = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage == "the memory learns" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stategate.wrap(Backbone, recordings(), tmp_path / "out", progress=stop)
    assert "reading recordings" in stages
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_gate_that_costs_memory_is_a_loss_and_lower_prices_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(lesson: Lesson, price: float, report: object) -> int:
        # Writing always would be as bad now: against that alone nothing would be lost.
        nn.init.zeros_(lesson.policy.memory.head_out.weight)
        return 1

    monkeypatch.setattr(Lesson, "learn_to_skip", forget)
    with pytest.raises(CalibrationError, match=r"(?s)no gate keeps.*price 0\.1:.*0\.033.*0\.011"):
        stategate.wrap(Backbone, recordings(), tmp_path / "out", iterations=500)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory):
    """A small policy that was wrapped in half a minute."""
    out = tmp_path_factory.mktemp("wrap") / "wrapped"
    backbone = Backbone().train()
    return backbone, out, stategate.wrap(backbone, recordings(5), out, iterations=300)


@pytest.mark.slow
def test_a_policy_remembers_with_few_writes_and_its_backbone_stays_as_it_was(wrapped) -> None:
    backbone, out, (bundle, report, policy) = wrapped
    assert report.accuracy > 0.97 > 0.6 > report.row("random").accuracy
    assert report.row("periodic").accuracy < 0.6
    assert report.row("never").accuracy < 0.5
    assert report.steps_per_write > 5
    assert report.lost_points <= 0.005
    assert WrapReport.load(f"{out}.json") == report
    assert backbone.training
    assert policy.backbone is backbone
    fresh = Backbone().state_dict()
    assert all(torch.equal(fresh[name], w) for name, w in backbone.state_dict().items())
    assert bundle.manifest.verdict == "verified"


@pytest.mark.slow
def test_the_bundle_does_on_unseen_streams_what_the_report_says(wrapped) -> None:
    _, out, (_, report, _) = wrapped
    x, label = cued(77)
    right = judged = 0
    with Session.open(out) as session:
        for t in range(STEPS):
            action = session.step(x=x[t])["action"]
            if label[t] >= 0:
                right, judged = right + int(action.argmax() == label[t]), judged + 1
        writes = session.ledger.writes
    assert right / judged > report.accuracy - 0.03
    assert 1 / report.steps_per_write == pytest.approx(writes / STEPS, rel=0.2)


@pytest.mark.slow
def test_continuous_actions_are_judged_by_their_error(tmp_path: Path) -> None:
    where = np.array([[1.0, 0.0], [-0.5, 3.0], [0.0, -2.0], [0.0, 0.0]], np.float32)
    episodes = []
    for seed in range(5):
        x, label = cued(seed)
        episodes.append(Episode({"x": x, "action": where[label][:, None]}))
    _, report, policy = stategate.wrap(
        Backbone, episodes, tmp_path / "out", iterations=300, allowed_loss=0.02
    )
    assert report.continuous
    assert report.accuracy is None
    assert report.row("gate").action_error < 0.3 < 0.6 < report.memoryless_error
    assert report.steps_per_write > 4


@pytest.mark.slow
def test_the_verb_takes_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for i, episode in enumerate(recordings(5)):
        (folder / f"{i}.npz").write_bytes(episode.to_bytes())
    source = tmp_path / "backbone.py"
    source.write_text(
        "import torch\n"
        "def policy():\n"
        "    torch.manual_seed(0)\n"
        f"    return torch.nn.Sequential(torch.nn.Linear({SIZE}, 16), torch.nn.Tanh())\n"
    )
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main,
        ["wrap", f"{source}:policy", "--recordings", str(folder), "--out", str(out)]
        + ["--iterations", "300"],
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"gate > -\d +\d\.\d\d%", result.output)
    assert "times fewer writes than always" in result.output
    assert "verified over" in result.output


def test_recorded_features_need_no_backbone() -> None:
    x, label = cued(0)
    episodes = [Episode({"features": x}, {"action": label})] * 2
    with pytest.raises(CalibrationError, match="not learned"):
        train_memory(None, episodes, recipe=WrapRecipe(iterations=20, chunk=8, rows=4))


def test_recordings_that_are_not_there_are_named() -> None:
    with pytest.raises(EpisodeError, match="nowhere cannot be read"):
        stategate.wrap(Backbone, Path("nowhere"), "out")


class Stop(Exception):
    """Of the user."""


def test_a_backbone_in_a_file_is_asked_frame_by_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    weights = np.random.default_rng(0).standard_normal((SIZE, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["pixels", "w"], ["out"])],
        "backbone",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 16])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "backbone.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    x, label = cued(0, 50)
    with opened(str(path), (TensorSpec("x", (1, SIZE)),)) as backbone:
        features = checked_features(backbone, {"x": x})

        # What a signal's handler raises meanwhile is the user's, and no fault of the backbone.
        def stops(*_: object) -> None:
            raise Stop

        before = signal.signal(signal.SIGUSR1, stops)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            interrupted = lambda *_: signal.raise_signal(signal.SIGUSR1)  # noqa: E731
            patch.setattr(onnxruntime.InferenceSession, "run", interrupted)
            checked_features(backbone, {"x": x})
        signal.signal(signal.SIGUSR1, before)
    assert np.abs(features - x[:, 0] @ weights).max() < 1e-5
    with pytest.raises(CalibrationError, match=r"(?s)does not fit.*pixels.*expected: inputs a, b"):
        stategate.wrap(path, [Episode({"a": x, "b": x}, {"action": label})] * 200, tmp_path / "out")
    with pytest.raises(CalibrationError, match=r"(?s)ONNX file.*inside.*leave --backbone out"):
        stategate.wrap(path, recordings(), tmp_path / "out", place="inside")


def test_a_backbone_of_two_inputs_takes_them_by_the_names_of_its_arguments() -> None:
    class Two(nn.Module):
        def forward(self, speed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return x - 2 * speed

    x, _ = cued(0, 50)
    with opened(Two(), (TensorSpec("x", (1, SIZE)), TensorSpec("speed", (1, SIZE)))) as backbone:
        features = checked_features(backbone, {"x": x, "speed": 3 * x})
        assert [tensor.name for tensor in backbone.inputs] == ["speed", "x"]
    assert np.abs(features + 5 * x[:, 0]).max() < 1e-5
