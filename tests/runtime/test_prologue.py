"""An encoder begins the episodes of a decoder: verified, and asked for when missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode, StateSpec, StepSpec, TensorSpec, write_bundle
from stategate.contract.errors import ExportError, SpecError, StateFault, StepInputError
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session
from stategate.runtime.check.faults import inject

IMAGE = np.random.default_rng(1).standard_normal((1, 6)).astype(np.float32)
X = np.ones((1, 4), np.float32)


class Encoder(nn.Module):
    """Gives the first hidden state of an image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = nn.Linear(6, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"h": torch.tanh(self.net(image))}


class Decoder(nn.Module):
    """Goes on from what the encoder saw."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 4)),),
            (TensorSpec("y", (1, 4)),),
            (StateSpec("h", (1, 4)), StateSpec("count", (1, 1))),
        )

    def step(self, inputs: Mapping[str, Any], states: Mapping[str, Any]) -> StepResult:
        h = 0.5 * states["h"] + inputs["x"]
        return StepResult({"y": h * 2.0}, {"h": h, "count": states["count"] + 1.0}, {})


def answer(image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        h = Encoder()(torch.from_numpy(image))["h"].numpy()
    return 2.0 * (0.5 * h + X)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prologue") / "bundle"
    encoder = (Encoder(), {"image": torch.zeros(1, 6)})
    return stategate.make(Decoder(), out, prologue=encoder, steps=32).path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Encoder and decoder as ONNX files, with a batch axis of its own each."""
    for name, module, example, names in (
        ("encoder", Encoder(), (torch.zeros(1, 6),), (["image"], ["first"])),
        ("decoder", _Cell(), (torch.zeros(1, 4), torch.zeros(1, 4)), (["x", "h"], ["y", "h_next"])),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older exporter keeps the names of axes
            torch.onnx.export(
                module,
                example,
                tmp_path / f"{name}.onnx",
                input_names=names[0],
                output_names=names[1],
                dynamo=False,
                dynamic_axes={names[0][0]: {0: "batch"}} if name == "encoder" else {},
            )
    return tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"


class _Cell(nn.Module):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = 0.5 * h + x
        return h * 2.0, h


@pytest.mark.slow
def test_an_episode_begins_as_the_encoder_says(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.verification is not None
    assert manifest.verification.max_prologue_error is not None
    assert manifest.verification.max_prologue_error < 1e-5
    with Session.open(bundle) as session:
        session.begin(image=IMAGE)
        np.testing.assert_allclose(session.step(x=X)["y"], answer(IMAGE), atol=1e-6)
        session.begin(image=-IMAGE)
        np.testing.assert_allclose(session.step(x=X)["y"], answer(-IMAGE), atol=1e-6)
        assert (session.ledger.resets, session.ledger.steps) == (2, 2)
        assert session.state("count").item() == 1.0
    with Pool.open(bundle) as pool:
        row = pool.join()
        pool.begin(row, image=IMAGE)
        np.testing.assert_allclose(pool.step(x=X)["y"], answer(IMAGE), atol=1e-6)


def test_a_session_that_was_not_begun_says_how(bundle: Path, tmp_path: Path) -> None:
    with Session.open(bundle, snapshots=tmp_path) as session:
        for step in (session.step, lambda x: session.prefill(x=x[None])):
            with pytest.raises(StepInputError, match=r"session.begin\(image=...\)"):
                step(x=X)
        session.begin(image=IMAGE)
        session.step(x=X)
        session.save()
        session.reset()
        with pytest.raises(StepInputError, match="no episode was begun"):
            session.step(x=X)
        session.restore()
        session.step(x=X)
        assert session.ledger.steps == 2
    with Pool.open(bundle) as pool:
        row = pool.join()
        with pytest.raises(StepInputError, match=r"pool.begin\(row, image=...\)"):
            pool.step(x=X)
        pool.begin(row, image=IMAGE)
        pool.step(x=X)
        pool.reset(row)
        with pytest.raises(StepInputError, match="no episode was begun"):
            pool.step(x=X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes other inputs"),
        ({"picture": IMAGE}, "takes other inputs"),
        ({"image": IMAGE[0]}, "wrong shape"),
        ({"image": IMAGE.astype(np.float64)}, "wrong dtype"),
        ({"image": IMAGE * np.nan}, "not finite"),
    ],
)
def test_wrong_inputs_of_a_prologue_change_nothing(
    bundle: Path, inputs: dict[str, np.ndarray], message: str
) -> None:
    with Session.open(bundle) as session:
        session.begin(image=IMAGE)
        before = session.state("h").tobytes(), session.ledger
        with pytest.raises(StepInputError, match=message):
            session.begin(**inputs)
        assert (session.state("h").tobytes(), session.ledger) == before


def test_a_bundle_without_a_prologue_says_so(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle) as session, pytest.raises(StepInputError, match="no prologue"):
        session.begin(image=IMAGE)


def test_a_replay_notices_a_prologue_that_is_another(bundle: Path, tmp_path: Path) -> None:
    assert stategate.verify(bundle).passed
    opened = Bundle.open(bundle)
    content = {f.path: opened.read(f) for f in opened.manifest.all_files}
    graph = opened.manifest.graph_of("prologue")
    assert graph is not None
    model = onnx.load_model_from_string(content[graph.file.path])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name
        ))  # fmt: skip
    raw = model.SerializeToString()
    content[graph.file.path] = raw
    file = msgspec.structs.replace(graph.file, sha256=stategate.contract.sha256(raw))
    graphs = tuple(
        msgspec.structs.replace(g, file=file) if g.role == "prologue" else g
        for g in opened.manifest.graphs
    )
    manifest = msgspec.structs.replace(opened.manifest, graphs=graphs)
    report = stategate.verify(write_bundle(tmp_path / "other", manifest, content))
    assert not report.passed and report.replay is not None
    assert report.replay.max_prologue_error is not None
    assert report.replay.max_prologue_error > 1e-3 > report.replay.max_output_error


def test_verbs_step_such_a_bundle_and_recordings_carry_what_begins_them(
    bundle: Path, tmp_path: Path
) -> None:
    def cli(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "of the prologue" in cli("verify", bundle)
    cli("run", bundle, "--steps", 8)
    assert "prologue onnx" in cli("inspect", bundle)
    file = tmp_path / "a.npz"
    file.write_bytes(Episode({"x": X[None]}, prologue={"image": IMAGE}).to_bytes())
    cli("run", bundle, "--episode", file)
    cli("episodes", "record", bundle, "--episode", file, "--out", tmp_path / "recorded")
    with Session.open(bundle) as session:
        Episode.load(tmp_path / "recorded" / "part-000000.npz").begin(session, ["h", "count"])
        np.testing.assert_allclose(session.step(x=X)["y"], answer(IMAGE), atol=1e-6)


def test_a_fault_or_an_idle_time_does_not_go_on_without_the_encoder(
    bundle: Path, tmp_path: Path
) -> None:
    with Session.open(bundle, on_fault="reset") as session:
        session.begin(image=IMAGE)
        inject(session, {1: "state"})
        with pytest.raises(StateFault):
            session.step(x=X)
        with pytest.raises(StepInputError, match="no episode was begun"):
            session.step(x=X)


def test_an_encoder_file_begins_an_adopted_decoder(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    encoder, decoder = files
    out = tmp_path / "bundle"
    command = ["adopt", decoder, "--state", "h=h_next", "--prologue", encoder, "--prologue-output",
               "h=first", "--dim", "prologue.batch=1", "--steps", 16, "--out", out]  # fmt: skip
    result = CliRunner().invoke(main, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    with Session.open(out) as session:
        session.begin(image=IMAGE)
        np.testing.assert_allclose(session.step(x=X)["y"], answer(IMAGE), atol=1e-6)
    assert stategate.verify(out).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prologue_outputs": {"h": "last"}}, "no such output"),
        ({"prologue_outputs": {"g": "first"}}, "a state that the model lacks"),
        ({"prologue_outputs": {}}, "nothing of the prologue is a state"),
        ({"dims": {"prologue.batch": 2}}, "with another form"),
        ({"dims": {}}, "batch"),
        ({"dims": {"prologue.rows": 1}}, "rows"),
    ],
)
def test_an_encoder_that_does_not_fit_leaves_nothing_on_disk(
    files: tuple[Path, Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    encoder, decoder = files
    usual: dict[str, Any] = {"prologue_outputs": {"h": "first"}, "dims": {"prologue.batch": 1}}
    with pytest.raises((ExportError, SpecError), match=message):
        stategate.adopt(
            decoder, tmp_path / "b", states={"h": "h_next"}, prologue=encoder, steps=16,
            **(usual | options)
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_a_module_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    example = {"image": torch.zeros(1, 6)}
    for encoder, message in (
        (Encoder(), "this is no prologue"),
        ((Encoder(), {"picture": torch.zeros(1, 6)}), "fails on its example"),
        ((Encoder(), {"image": torch.zeros(2, 6)}), "with another form"),
        ((nn.Sequential(nn.Linear(6, 4)), example), "fails on its example"),
    ):
        with pytest.raises((ExportError, SpecError), match=message):
            stategate.make(Decoder(), tmp_path / "b", prologue=encoder, steps=8)  # type: ignore[arg-type]
        assert not (tmp_path / "b").exists()
