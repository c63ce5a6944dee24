"""Models, bundles and recordings that tests of several rooms share."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import signal
import tempfile
import wave
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from stategate.contract import Episode, GateSpec, StateSpec, StepSpec, TensorSpec, write_bundle
from stategate.contract.bundle import Bundle
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.deploy import with_c
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.models.load import LoadedModel, load_model
from stategate.models.step import StepResult

# A shell's background ignores SIGINT and nohup SIGHUP; programs that tests end with them would
# inherit that and wait for ever.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# What tests seal is accepted by tests alone; workers and programs that they start inherit the list.
if "PYTEST_XDIST_WORKER" not in os.environ:
    accepted = tempfile.TemporaryDirectory(prefix="stategate-tests-")
    os.environ["STATEGATE_TRUST"] = f"{accepted.name}/accepted"

# A shared machine can be slow for a while; how long an example takes is no property of the code.
settings.register_profile("stategate", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("stategate")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases of a grid that are none of its corners are slow; each grid has a corner."""
    grids: dict[str, list[bool]] = {}
    for item in items:
        corners = item.get_closest_marker("corners")
        if corners:
            case = item.callspec.id  # type: ignore[attr-defined]
            is_corner = any(fnmatchcase(case, corner) for corner in corners.args)
            grids.setdefault(item.nodeid.partition("[")[0], []).append(is_corner)
            if not is_corner:
                item.add_marker(pytest.mark.slow)
    for name, cases in grids.items():
        if len(cases) > 1 and not any(cases):
            raise pytest.UsageError(f"no case of {name} is one of its corners")


_export = torch.onnx.export


def _export_with_one_registry(*arguments: object, **options: object) -> object:
    """For each export torch translates its 500 ONNX functions anew, most of the time it takes."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry, "whole"):
        ONNXRegistry.whole = staticmethod(functools.cache(ONNXRegistry.from_torchlib))

        def registry_of(**version: int) -> ONNXRegistry:
            registry = copy.copy(ONNXRegistry.whole(**version))
            registry.functions = {name: [*them] for name, them in registry.functions.items()}
            return registry

        ONNXRegistry.from_torchlib = staticmethod(registry_of)
    return _export(*arguments, **options)


torch.onnx.export = _export_with_one_registry


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: steps this small wait for a second one, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tiny(nn.Module):
    """A gated memory with a matrix, and a counter that no gate guards."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.mix = nn.Linear(4, 4)

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 4)),),
            outputs=(TensorSpec("y", (1, 4)),),
            states=(
                StateSpec("h", (1, 4), gate="gate"),
                StateSpec("count", (1, 1)),
            ),
            gates=(GateSpec("gate", "hard", (1, 1), self.threshold, "threshold"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        gate = inputs["x"][:, :1]
        new = torch.tanh(self.mix(inputs["x"]) + 0.5 * states["h"])
        h = torch.where(gate > inputs["threshold"], new, states["h"])
        return StepResult({"y": 2.0 * h}, {"h": h, "count": states["count"] + 1.0}, {"gate": gate})


class TinyWithStart(Tiny):
    """The same, remembering something before its first step."""

    def initial_states(self) -> dict[str, torch.Tensor]:
        return {"h": torch.tensor([[0.5, -0.25, 0.125, 1.0]])}


@pytest.fixture(scope="session")
def tiny_pool_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle of four sessions of ``TinyWithStart``."""
    out = tmp_path_factory.mktemp("tiny-pool") / "bundle"
    return _seal(out, TinyWithStart(), sessions=4).path


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def tiny_model() -> type[Tiny]:
    """The class of ``Tiny``, for fixtures that live longer than a test."""
    return Tiny


@pytest.fixture
def tiny_with_start() -> TinyWithStart:
    return TinyWithStart()


Sealer = Callable[..., Bundle]


def _seal(
    out: Path,
    model: nn.Module | LoadedModel,
    steps: int = 40,
    sessions: int = 1,
    operators: str = "portable",
    native: bool = False,
    episode: Episode | None = None,
) -> Bundle:
    """What `stategate.make` does, without the measurements that a test does not need."""
    if isinstance(model, nn.Module):
        model = LoadedModel(type(model).__name__, "custom", "tests", model, model, None)
    candidate = candidate_from(model, sessions, operators)
    candidate = with_c(candidate) if native else candidate
    episode = episode or random_episode(candidate.spec, steps)
    return seal(out, candidate, reference_for(model.model, candidate), episode)


@pytest.fixture(scope="session")
def seal_model() -> Sealer:
    """Export a model without the command line."""
    return _seal


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle of ``Tiny``; tests that change it take ``copy_of``."""
    return _seal(tmp_path_factory.mktemp("tiny") / "bundle", Tiny()).path


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a bundle, file by file, to a place that the test may damage."""

    def copy(bundle: Path) -> Path:
        opened = Bundle.open(bundle)
        content = {f.path: opened.read(f) for f in opened.manifest.all_files}
        return write_bundle(tmp_path / "copy", opened.manifest, content).path

    return copy


@pytest.fixture(scope="session")
def aura_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped AURA-Mem policy, sealed after 1,000 closed-loop steps beside torch."""
    loaded = load_model("aura-hard")
    out = tmp_path_factory.mktemp("aura") / "bundle"
    return _seal(out, loaded, episode=loaded.episode(1000, 11)).path


@pytest.fixture(scope="session")
def native_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same policy with its native engine, compiled here."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    loaded = load_model("aura-hard")
    out = tmp_path_factory.mktemp("native") / "bundle"
    return _seal(out, loaded, native=True, episode=loaded.episode(300, 11)).path


def _speech(name: str) -> tuple[np.ndarray, int]:
    found = [f for f in files("moonshine-voice") or [] if f.name == name]
    with wave.open(str(found[0].locate())) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return (raw / 32768.0).astype(np.float32), file.getframerate()


@pytest.fixture(scope="session")
def speech() -> Callable[[str], tuple[np.ndarray, int]]:
    """Recorded speech that moonshine-voice ships: samples in [-1, 1], and their rate."""
    return _speech
