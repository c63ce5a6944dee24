"""``import stategate``: one call each, loaded when it is used, and an example that runs."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stategate
from stategate.calibration.drift.record import DriftLimits
from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import (
    BundleError,
    CalibrationError,
    EpisodeError,
    ExportError,
    ParityError,
    ResultError,
    SpecError,
    StatePairingError,
    TraceError,
)
from stategate.models import lift
from stategate.targets import names


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_example_of_the_package_runs_as_it_is_printed() -> None:
    result = doctest.testmod(stategate)
    assert result.attempted >= 10
    assert result.failed == 0


def test_the_package_and_the_runtime_load_numpy_and_msgspec_alone() -> None:
    before = {name.partition(".")[0] for name in modules_after("")}
    for code in ("import stategate", "import stategate.runtime", "from stategate import Session"):
        loaded = {name.partition(".")[0] for name in modules_after(code)} - before
        others = {name for name in loaded - set(sys.stdlib_module_names) if name[0] != "_"}
        assert others <= {"numpy", "msgspec", "stategate", "typing_extensions"}, code


@pytest.mark.parametrize("name", sorted(set(stategate.__all__) - {"__version__"}))
def test_every_name_of_the_front_door_says_what_it_takes_and_gives(name: str) -> None:
    thing = getattr(stategate, name)
    assert thing.__doc__ and inspect.signature(thing)
    if inspect.isfunction(thing):
        parameters = inspect.signature(thing).parameters.values()
        assert all(p.annotation is not p.empty for p in parameters)
        documented = inspect.getdoc(thing)
        assert documented and "Raises:" in documented
        assert [p.name for p in parameters if f"    {p.name}: " not in documented] == []


def test_a_name_that_the_front_door_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = stategate.nothing  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models.lift", "contract.Episode", "targets.load"])
def test_a_room_is_there_where_a_hint_is_pasted_after_the_import_of_the_package(name: str) -> None:
    modules_after(f"import stategate\nstategate.{name}")


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport stategate\n"
        "try: stategate.make\n"
        "except stategate.contract.errors.MissingDependencyError as problem:\n"
        "    assert 'stategate[export]' in str(problem)\n"
        "else: raise SystemExit(1)"
    )
    modules_after(code)


class Filter(nn.Module):
    """Its memory is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.drop(self.enter(x)) + 0.5 * h)
        return 2 * h, h


def lifted() -> nn.Module:
    torch.manual_seed(3)
    start = {"h": torch.zeros(1, 3)}
    return lift(Filter(), {"x": torch.zeros(1, 3)}, hidden=start)


@pytest.mark.parametrize(
    "model", [lifted, partial(lifted), f"{Path(__file__)}:lifted"], ids=["call", "partial", "file"]
)
def test_a_factory_and_a_file_are_made_like_the_module_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: object
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    one = stategate.make(lifted(), tmp_path / "one", steps=20)
    two = stategate.make(model, tmp_path / "two", steps=20)
    assert one.receipt is not None and one.receipt.steps == 20
    assert repr(one).startswith(f"<Bundle {tmp_path}/one: Filter, 12 bytes of memory, sealed, ")
    assert one.manifest.model.sha256 == two.manifest.model.sha256
    assert one.manifest.step_graph.file.sha256 == two.manifest.step_graph.file.sha256
    assert (one.manifest.model.name, two.manifest.model.name) == ("Filter", "lifted")


def test_a_module_is_left_as_it_was_and_gives_the_same_bundle_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    tiny.mix.train(False)
    weights = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    bundles = [stategate.make(tiny, tmp_path / name, steps=20).manifest for name in ("a", "b")]
    files = [{file.path: file.sha256 for file in bundle.all_files} for bundle in bundles]
    assert files[0] == files[1]
    assert tiny.training and not tiny.mix.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny.state_dict().items())


def test_progress_is_called_and_nothing_is_printed(tmp_path: Path, tiny, capfd) -> None:
    seen: list[tuple[str, int, int]] = []
    episode = Episode({"x": np.random.default_rng(0).normal(size=(30, 1, 4)).astype(np.float32)})
    bundle = stategate.make(
        tiny, tmp_path / "b", episode=episode, steps=30, progress=lambda *news: seen.append(news)
    )
    assert seen[0] == ("verifying", 0, 30)
    assert seen[-1] == ("verifying", 30, 30)
    assert bundle.receipt is not None and bundle.receipt.inputs.kind == "recording"
    assert capfd.readouterr() == ("", "")


def test_the_exception_of_a_factory_is_the_users_own() -> None:
    def broken() -> nn.Module:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stategate.make(broken, "never-written")


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"model": object()}, TraceError, "is no step"),
        ({"precision": "int3"}, SpecError, "no such precision"),
        ({"safe": {"z": 1.0}}, SpecError, "output that the model lacks"),
        ({"error_feedback": True}, SpecError, "fewer bits"),
        ({"accept": "nobody"}, SpecError, "who overrules"),
        ({"accept": "me: a toy"}, SpecError, "lower precision"),
        ({"max_flip_rate": 0.5}, SpecError, "lower precision"),
        ({"engines": "nativ"}, SpecError, "no such value of engines"),
        ({"split": "two"}, SpecError, "no such value of split"),
        ({"operators": "fast"}, SpecError, "no such value of operators"),
        ({"steps": 0}, SpecError, "steps must be a whole number of at least 1"),
        ({"steps": 1e3}, SpecError, "steps must be a whole number"),
        ({"max_state_bytes": 4e9}, SpecError, "max_state_bytes must be a whole"),
        ({"precision": "int8-weights", "max_flip_rate": 2}, SpecError, "from 0 to 1"),
        ({"precision": "int8-weights", "max_output_error": -1}, SpecError, "at least 0"),
        ({"safe": {"y": "half"}}, SpecError, "no number"),
        ({"episode": {"x": np.zeros((5, 1, 4), np.float32)}}, EpisodeError, "contract.Episode"),
        ({"calibration": "none.json"}, CalibrationError, "cannot be read"),
        ({"input_ranges": {"x": (2.0, 1.0)}}, EpisodeError, "cannot have this range"),
        ({"sessions": 0}, SpecError, "sessions must be a whole number"),
        ({"input_ranges": {"x": 3}}, SpecError, r"input_ranges is of the wrong kind[\s\S]*'x': 3"),
        ({"target": 3}, SpecError, r"target is of the wrong kind\n  found: 3, a value of type int"),
        ({"calibration": 3}, SpecError, r"calibration is of the wrong kind[\s\S]*Iterable"),
        ({"state_precision": ["int8"]}, SpecError, "state_precision is of the wrong kind"),
        ({"safe": 3}, SpecError, "safe is of the wrong kind"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, tiny, wrong: dict, error: type[Exception], said: str
) -> None:
    model = wrong.pop("model", tiny)
    with pytest.raises(error, match=said):
        stategate.make(model, tmp_path / "b", **{"steps": 5, **wrong})
    assert not (tmp_path / "b").exists()


def test_numbers_of_numpy_are_taken_like_those_of_python(tmp_path: Path, tiny) -> None:
    bundle = stategate.make(
        tiny,
        tmp_path / "b",
        steps=np.int64(5),
        sessions=np.int64(2),
        max_state_bytes=np.int64(1000),
        safe={"y": np.array([0.5, 1.0, 2.0, 3.0], np.float32)},
        precision="int8-weights",
        max_output_error=np.float32(0.5),
        max_flip_rate=np.float32(1.0),
    )
    assert bundle.manifest.budget.state_bytes == 1000
    assert bundle.manifest.step.outputs[0].safe == (0.5, 1.0, 2.0, 3.0)


def test_ranges_beside_a_recording_are_refused_and_not_forgotten(tmp_path: Path, tiny) -> None:
    wave = Episode({"x": np.zeros((5, 1, 3), np.float32)})
    with pytest.raises(EpisodeError, match="not both"):
        stategate.adopt(
            proto(), tmp_path / "a", accept_pairs=True, episode=wave, input_ranges={"x": (0, 1)}
        )
    wave = Episode({"x": np.zeros((5, 1, 4), np.float32)})
    with pytest.raises(EpisodeError, match="not both"):
        stategate.make(tiny, tmp_path / "a", episode=wave, input_ranges={"x": (0, 1)})


def test_an_opened_bundle_stands_wherever_its_folder_may(tmp_path: Path, tiny) -> None:
    bundle = stategate.make(tiny, tmp_path / "b", steps=5)
    with stategate.Session.open(bundle) as session, stategate.Pool.open(bundle) as pool:
        assert session.manifest == pool.manifest == bundle.manifest
    with pytest.raises(ExportError, match="a bundle already"):
        stategate.make(bundle, tmp_path / "c")
    for call in (stategate.verify, stategate.Session.open, stategate.Pool.open):
        with pytest.raises(BundleError, match="found: a Tiny"):
            call(tiny)
    with pytest.raises(BundleError, match="found: a Tiny"):
        stategate.measure_ranges(tiny, tmp_path)


def test_a_path_to_a_file_with_a_factory_is_a_model(tmp_path: Path) -> None:
    assert stategate.make(Path(f"{__file__}:lifted"), tmp_path / "b", steps=5).receipt


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path: Path, tiny) -> None:
    with pytest.raises(ResultError, match="too long"):
        stategate.make(tiny, tmp_path / ("a" * 300))


def test_numbers_that_judge_nothing_are_refused(tiny_bundle: Path, recording: Episode) -> None:
    compare = partial(stategate.compare, tiny_bundle, tiny_bundle)
    calls = [
        partial(compare, recording, steps=0),
        partial(compare, recording, steps=-5),
        partial(stategate.verify, tiny_bundle, tolerance=float("nan")),
        partial(stategate.verify, tiny_bundle, tolerance=-1.0),
        partial(stategate.fits, tiny_bundle, sessions=0),
        partial(stategate.fits, tiny_bundle, horizon_steps=-1),
        partial(stategate.fits, tiny_bundle, rate_hz=float("nan")),
        partial(stategate.calibrate, "aura-hard", steps=0),
        partial(stategate.calibrate, "aura-hard", count=0),
    ]
    for call in calls:
        with pytest.raises(SpecError, match="must be a"):
            call()


@pytest.mark.parametrize("wrong", [None, {"x": np.zeros((5, 1, 4), np.float32)}, 3, [[1.0]]])
def test_what_is_no_recording_is_refused_with_what_makes_one(
    tiny_bundle: Path, wrong: object
) -> None:
    for call in (partial(stategate.compare, tiny_bundle), stategate.measure_ranges):
        with pytest.raises(EpisodeError, match=r"stategate.contract.Episode\("):
            call(tiny_bundle, wrong)


def proto() -> onnx.ModelProto:
    """h_out = 0.5 h + x, y = 2 h_out."""
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    half, two = (
        onnx.numpy_helper.from_array(np.float32(number), name)
        for name, number in (("half", 0.5), ("two", 2.0))
    )
    nodes = [
        onnx.helper.make_node("Mul", ["h", "half"], ["faded"]),
        onnx.helper.make_node("Add", ["faded", "x"], ["h_out"]),
        onnx.helper.make_node("Mul", ["h_out", "two"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "my filter",
        [value("x", shape=[1, 3]), value("h", shape=[1, 3])],
        [value("y", shape=[1, 3]), value("h_out", shape=[1, 3])],
        [half, two],
    )
    opset = onnx.helper.make_opsetid("", 20)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)


def test_a_model_proto_is_adopted_like_its_file(tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "filter.onnx")
    one = stategate.adopt(tmp_path / "filter.onnx", tmp_path / "a", states={"h": "h_out"}, steps=20)
    two = stategate.adopt(proto(), tmp_path / "b", states={"h": "h_out"}, steps=20)
    assert two.manifest.model.name == "my-filter"
    assert [s.name for s in one.manifest.states] == [s.name for s in two.manifest.states] == ["h"]
    with stategate.Session.open(two.path) as session:
        for expected in (2.0, 3.0, 3.5):  # 2 (x + x / 2 + ...)
            y = session.step(x=np.ones((1, 3), np.float32))["y"]
            assert (y == expected).all()


def test_pairs_that_were_found_are_taken_when_they_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(StatePairingError, match="not confirmed"):
        stategate.adopt(proto(), tmp_path / "a", steps=5)
    asked = []
    bundle = stategate.adopt(
        proto(), tmp_path / "a", steps=5, accept_pairs=lambda found: asked.append(found) is None
    )
    assert [found.pairs for found in asked] == [{"h": "h_out"}]
    assert bundle.receipt is not None


def test_verify_tells_sealed_from_accepted_and_from_altered(tmp_path: Path, tiny) -> None:
    sealed = stategate.make(tiny, tmp_path / "sealed", steps=20)
    found = stategate.verify(sealed)
    assert found.passed and found.sealed and found.replay is not None
    (sealed.path / "stray").write_text("x")
    assert not stategate.verify(sealed.path, digests_only=True).passed


def test_a_candidate_and_a_refused_bundle_do_not_pass(tmp_path: Path, tiny_bundle, tiny) -> None:
    narrow = tmp_path / "narrow"
    make = partial(stategate.make, tiny, narrow, steps=20, precision="float16-weights")
    with pytest.raises(ParityError, match="lower precision"):
        make(max_output_error=1e-12)
    candidate = stategate.verify(make())
    assert candidate.intact and not candidate.sealed and not candidate.passed
    inputs = np.random.default_rng(0).normal(size=(30, 1, 4)).astype(np.float32)
    (tmp_path / "held.npz").write_bytes(Episode({"x": inputs}).to_bytes())
    judge = f"drift {tiny_bundle} {narrow} --episode {tmp_path}/held.npz --out {tmp_path}/report"
    taken = [*judge.split(), "--seal", str(narrow), "--max-mean-error", "0", "--accept", "me: test"]
    assert CliRunner().invoke(main, taken).exit_code == 0
    refused = stategate.verify(narrow)
    assert refused.intact and not refused.sealed and not refused.passed
    said = CliRunner().invoke(main, ["verify", str(narrow)])
    assert said.exit_code == 1 and "--allow-refused" in said.output and "FAILED" in said.output
    assert CliRunner().invoke(main, ["verify", str(narrow), "--allow-refused"]).exit_code == 0
    (narrow / "stray").write_text("x")
    assert CliRunner().invoke(main, ["verify", str(narrow), "--allow-refused"]).exit_code == 1


@pytest.fixture(scope="module")
def recording() -> Episode:
    """400 steps; a quarter of them opens the gate of ``Tiny`` at 0.6745 (Gauss' upper quartile)."""
    return Episode({"x": np.random.default_rng(5).normal(size=(400, 1, 4)).astype(np.float32)})


def test_calibrate_finds_the_quantile_of_what_opens_the_gate(tiny, recording: Episode) -> None:
    record = stategate.calibrate(tiny, recording, write_rate=0.25)
    (gate,) = record.gates
    column = recording.inputs["x"][:, 0, 0]
    assert np.mean(column > gate.threshold) == pytest.approx(gate.write_rate)
    assert gate.threshold == pytest.approx(np.quantile(column, 0.75), abs=0.1)
    with pytest.raises(EpisodeError, match="needs recorded episodes"):
        stategate.calibrate(tiny, write_rate=0.25)


@pytest.mark.slow
def test_from_a_module_to_a_sealed_bundle_in_eight_bits(
    tmp_path: Path, tiny, recording: Episode
) -> None:
    record = stategate.calibrate(tiny, recording, write_rate=0.25)
    common = {"episode": recording, "steps": 100, "calibration": [record]}
    exact = stategate.make(tiny, tmp_path / "float", **common)
    stages: list[str] = []
    candidate = stategate.quantise(
        tiny, tmp_path / "int8", **common, progress=lambda stage, *_: stages.append(stage)
    )
    assert list(dict.fromkeys(stages)) == ["verifying", "rolling"]
    assert stages[-1] == "verifying"
    assert candidate.manifest.standing == "candidate"
    assert candidate.manifest.step.thresholds == exact.manifest.step.thresholds
    stategate.measure_ranges(exact, recording).save(tmp_path / "ranges.json")
    record.save(tmp_path / "thresholds.json")
    common["calibration"] = [tmp_path / "thresholds.json"]
    again = stategate.quantise(tiny, tmp_path / "again", ranges=tmp_path / "ranges.json", **common)
    files = [bundle.manifest.step_graph.file.sha256 for bundle in (candidate, again)]
    assert files[0] == files[1]

    limits = DriftLimits(mean_error=0.1)
    report = stategate.compare(
        exact, candidate, recording, limits=limits, sealed=tmp_path / "sealed"
    )
    assert report.passed and report.total.steps == 400
    assert stategate.verify(tmp_path / "sealed").passed
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "<iframe" in report._repr_html_()

    strict = DriftLimits(mean_error=0.0)
    refused = stategate.compare(
        exact, candidate, recording, limits=strict, sealed=tmp_path / "never"
    )
    assert not refused.passed and not (tmp_path / "never").exists()
    with pytest.raises(SpecError, match="when it is sealed"):
        stategate.compare(exact, candidate, recording, accept="me: why not")


def test_a_model_in_training_is_calibrated_as_it_will_be_deployed(
    tiny_model: type[nn.Module], recording: Episode
) -> None:
    class Shaken(tiny_model):  # type: ignore[misc, valid-type]
        def step(self, inputs: dict, states: dict) -> object:
            factor = 5.0 if self.training else 1.0
            return super().step({**inputs, "x": factor * inputs["x"]}, states)

    model = Shaken()
    model.mix.eval()
    found = stategate.calibrate(model, recording, write_rate=0.25)
    assert found == stategate.calibrate(Shaken().eval(), recording, write_rate=0.25)
    assert model.training and not model.mix.training
    assert found == stategate.calibrate(Shaken, recording, write_rate=0.25)


@pytest.mark.slow
def test_models_are_made_from_several_threads(tmp_path: Path, tiny_model: type[nn.Module]) -> None:
    shared = tiny_model()
    models = [shared, shared, tiny_model, lifted]
    with ThreadPoolExecutor(len(models)) as pool:
        made = list(
            pool.map(
                lambda i: stategate.make(models[i], tmp_path / str(i), steps=5), range(len(models))
            )
        )
    assert all(stategate.verify(bundle).passed for bundle in made)
    assert shared.training and shared.mix.training


def test_ranges_without_recordings_are_refused(tmp_path: Path, tiny) -> None:
    with pytest.raises(EpisodeError, match="needs recorded episodes"):
        stategate.quantise(tiny, tmp_path / "int8", steps=5)
    assert not (tmp_path / "int8").exists()


def test_fits_takes_a_bundle_its_folder_and_a_model(tiny_bundle: Path, tiny) -> None:
    reports = [
        stategate.fits(thing, "raspberry-pi-5")
        for thing in (tiny_bundle, Bundle.open(tiny_bundle), tiny)
    ]
    assert all(report.passed for report in reports)
    assert {report.footprint.state_bytes for report in reports} == {20}
    assert len(stategate.fits(tiny_bundle, "all").fits) == len(names())
    with pytest.raises(SpecError, match="a bundle has its precision"):
        stategate.fits(tiny_bundle, precision="int8-weights")


def test_what_is_of_the_wrong_kind_is_refused_by_every_call_that_makes_or_judges(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with pytest.raises(SpecError, match=r"states is of the wrong kind\n  found: \['c'\]"):
        stategate.adopt("f.onnx", tmp_path / "b", states=["c"])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"out is of the wrong kind\n  found: None"):
        stategate.adopt("f.onnx", None)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"limits is of the wrong kind[\s\S]*DriftLimits"):
        stategate.compare(tiny_bundle, tiny_bundle, "log.npz", limits={})  # type: ignore[arg-type]
