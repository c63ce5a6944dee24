"""A backbone beside its memory: both are stepped, and another backbone is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode, TensorSpec
from stategate.contract.errors import BundleError, DigestError, StateFault, StategateError
from stategate.export.backbone import carried
from stategate.models.memories.wrapped import RememberingPolicy
from stategate.models.step import commit, initial_states, threshold_inputs
from stategate.models.weights import weights_sha256
from stategate.runtime import WrappedSession

STEPS = 200
INPUTS = (TensorSpec("picture", (1, 1, 6, 6)), TensorSpec("speed", (1, 2)))


class Eyes(nn.Module):
    """Two inputs, 8 features in the form of an image; in training it would drop some."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 2, 3, stride=3)
            self.line = nn.Linear(2, 8)
            self.drop = nn.Dropout(0.5)

    def forward(self, picture: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
        shown = torch.tanh(self.conv(picture)).flatten(1)
        answer: torch.Tensor = self.drop(shown + self.line(speed)).reshape(-1, 2, 2, 2)
        return answer


def recorded() -> Episode:
    rng = np.random.default_rng(0)
    shapes = {tensor.name: (STEPS, *tensor.shape) for tensor in INPUTS}
    return Episode({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def function_of(module: nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    """A module as a function of inputs by name."""

    @torch.no_grad()
    def run(inputs: Mapping[str, Any]) -> Any:
        return module(*(torch.from_numpy(inputs[t.name]) for t in INPUTS)).numpy()

    return run


def policy(threshold: float = 0.0) -> RememberingPolicy:
    """Untrained, with a gate that opens now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        step = RememberingPolicy(8, 3, threshold).eval()
        nn.init.normal_(step.memory.gate_surprise, std=0.1)
        step.action_scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
        # Half of all first steps write.
        empty = torch.zeros(STEPS, 32, 32)
        with torch.no_grad():
            asked_for = step.memory.recall(step.project(torch.randn(STEPS, 8)), empty, empty[:, 0])
            step.memory.gate_out.bias.sub_(asked_for.gate.median())
    return step


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A memory with its backbone beside it, stepped in C."""
    backbone, frames, step = Eyes(), recorded(), policy()
    run = function_of(copy.deepcopy(backbone).eval())
    features = np.stack([run(frame).reshape(1, 8) for frame in frames])
    step.carries = carried(backbone, weights_sha256(backbone), INPUTS, frames, features)
    assert backbone.training  # and is left as it was
    return stategate.make(
        step,
        tmp_path_factory.mktemp("apart") / "bundle",
        episode=Episode({"features": features}),
        steps=STEPS,
        engines="onnxruntime,native",
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_both_together_do_what_the_module_does_with_the_backbone_inside(
    bundle: Bundle, engine: str
) -> None:
    oracle, backbone = policy(), Eyes().eval()
    oracle.behind(backbone, INPUTS)
    spec, fixed = oracle.step_spec(), threshold_inputs(oracle.step_spec())
    writes = 0
    with WrappedSession.open(bundle.path, engine=engine) as session:
        for _ in range(2):
            states = initial_states(oracle)
            for frame in recorded():
                inputs = {n: torch.from_numpy(a) for n, a in frame.items()}
                with torch.no_grad():
                    result = oracle.step({**inputs, **fixed}, states)
                states = commit(spec, states, result)
                writes += bool(result.gates["gate"] > 0)
                action = session.step(**frame)["action"]
                assert np.abs(action - result.outputs["action"].numpy()).max() < 1e-5
            session.reset()
        assert session.memory.ledger.writes == writes
    assert 0 < writes < 2 * STEPS


def test_any_function_may_run_the_backbone_and_none_with_other_weights(
    bundle: Bundle, tmp_path: Path
) -> None:
    module = Eyes().eval()
    with WrappedSession.open(bundle, backbone=function_of(module)) as session:
        assert session.check() < 1e-5
        with torch.no_grad():
            module.conv.weight.add_(0.5)  # fine-tuned after all
        with pytest.raises(DigestError, match=r"(?s)not the backbone.*spread off.*at most 0\.02"):
            session.check()
    with pytest.raises(DigestError, match=r"(?s)trained behind.*wrap the new backbone"):
        WrappedSession.open(bundle, backbone=function_of(Eyes(seed=5).eval()))
    with pytest.raises(DigestError, match="7 features"):
        WrappedSession.open(bundle, backbone=lambda inputs: np.zeros(7))
    with pytest.raises(DigestError, match="spread off"):
        WrappedSession.open(bundle, backbone=lambda inputs: np.full(8, np.nan))


def test_a_copy_of_the_file_is_taken_and_another_file_is_not(
    bundle: Bundle, tmp_path: Path
) -> None:
    ref = bundle.manifest.backbone
    assert ref is not None
    raw = (bundle.path / ref.file).read_bytes()
    (tmp_path / "copy.onnx").write_bytes(raw)
    WrappedSession.open(bundle, backbone=tmp_path / "copy.onnx").close()
    (tmp_path / "other.onnx").write_bytes(raw + b"\0")
    with pytest.raises(DigestError, match=r"(?s)not the backbone.*other\.onnx: sha256"):
        WrappedSession.open(bundle, backbone=tmp_path / "other.onnx")


def test_wrong_inputs_are_named_and_change_no_memory(bundle: Bundle) -> None:
    frame = next(iter(recorded()))
    with WrappedSession.open(bundle) as session:
        with pytest.raises(StategateError, match=r"(?s)inputs are not.*picture\b.*picture, speed"):
            session.step(picture=frame["picture"])
        with pytest.raises((StategateError, StateFault)):
            session.step(**{**frame, "speed": np.full((1, 2), np.nan, np.float32)})
        assert session.memory.ledger.writes == 0


def test_inspect_names_the_backbone(bundle: Bundle) -> None:
    printed = CliRunner().invoke(main, ["inspect", str(bundle.path)]).output
    assert re.search(r"backbone +backbone\.onnx gives the input, of picture float32", printed)


def test_a_bundle_without_a_backbone_is_stepped_by_a_plain_session(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)carries no backbone.*Session\.open"):
        WrappedSession.open(tiny_bundle)
