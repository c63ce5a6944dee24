from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Budget, Bundle, CalibrationRecord, Episode, StateSpec
from stategate.contract.calibration import CurvePoint, GateCalibration
from stategate.contract.errors import (
    BundleError,
    CalibrationError,
    EpisodeError,
    ExportError,
    ParityError,
    SpecError,
)
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from
from stategate.export.frontends.references import TorchReference
from stategate.export.inputs import random_episode
from stategate.export.seal import verify
from stategate.export.seal.pack import seal
from stategate.models.load import LoadedModel
from stategate.models.step import StepModel
from stategate.runtime.check.full_pool import Stepper, open_stepper


@pytest.fixture
def loaded(tiny_with_start: StepModel) -> LoadedModel:
    return LoadedModel("tiny", "custom", "tests", tiny_with_start, tiny_with_start, None)


@pytest.fixture
def candidate(loaded: LoadedModel) -> Candidate:
    return candidate_from(loaded)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_receipt_says_what_was_compared(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    episode = random_episode(candidate.spec, 50, seed=1)
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    bundle = seal(tmp_path / "b", candidate, reference, episode)
    receipt = bundle.manifest.verification
    assert receipt is not None and receipt.steps == 50 and receipt.gate_flips == 0
    assert receipt.max_output_error < 1e-6
    opened = int((episode.inputs["x"][:, 0, 0] > 0).sum())
    assert receipt.gate_openings == {"gate": opened} and 0 < opened < 50


def test_a_build_time_that_is_none_is_refused(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    with pytest.raises(ExportError, match="yesterday"):
        seal(tmp_path / "b", candidate, reference, random_episode(candidate.spec, 2))


class Liar:
    """A reference that parts from the model at one step, in one way."""

    def __init__(self, honest: TorchReference, step: int, part: int) -> None:
        self.name = "a liar"
        self._honest, self._step, self._part, self._t = honest, step, part, 0

    def step(self, inputs: Mapping) -> tuple[dict, dict, dict]:
        parts = [{n: np.array(a) for n, a in p.items()} for p in self._honest.step(inputs)]
        if self._t == self._step:
            name = next(iter(parts[self._part]))
            parts[self._part][name] = -parts[self._part][name] + 0.25
        self._t += 1
        return tuple(parts)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["output", "state", "gate"])
def test_a_bundle_that_parts_from_its_model_is_never_written(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path, part: int
) -> None:
    liar = Liar(TorchReference(loaded.model, candidate.spec.thresholds), 7, part)
    x = np.full((20, 1, 4), 0.75, np.float32)
    with pytest.raises(ParityError, match="step 7"):
        seal(tmp_path / "b", candidate, liar, Episode({"x": x}))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_older_bundle(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    episode = random_episode(candidate.spec, 20)
    honest = TorchReference(loaded.model, candidate.spec.thresholds)
    digest = seal(tmp_path / "b", candidate, honest, episode).digest
    liar = Liar(TorchReference(loaded.model, candidate.spec.thresholds), 3, 0)
    with pytest.raises(ParityError):
        seal(tmp_path / "b", candidate, liar, episode)
    assert Bundle.open(tmp_path / "b").digest == digest


def test_a_memory_over_its_budget_is_refused_before_it_is_verified(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    with pytest.raises(SpecError, match="20 bytes"):
        seal(
            tmp_path / "b",
            candidate,
            reference,
            random_episode(candidate.spec, 2),
            budget=Budget(state_bytes=19),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    with pytest.raises(BundleError, match="in the way"):
        seal(tmp_path, candidate, reference, random_episode(candidate.spec, 2))


def test_an_episode_of_another_model_is_refused(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    with pytest.raises(EpisodeError, match="not the model's"):
        seal(tmp_path / "b", candidate, reference, Episode({}))


def record_for(candidate: Candidate, gate: str = "gate") -> CalibrationRecord:
    chosen = GateCalibration(gate, 0.5, 0.3, "by hand", (CurvePoint(0.5, 0.3, 1.0),))
    return CalibrationRecord(candidate.model.sha256, "an episode", 10, (chosen,))


def test_a_calibrated_threshold_reaches_the_manifest_and_its_receipt(
    candidate: Candidate, loaded: LoadedModel, tmp_path: Path
) -> None:
    calibrated = candidate.calibrated(record_for(candidate))
    reference = TorchReference(loaded.model, calibrated.spec.thresholds)
    bundle = seal(tmp_path / "b", calibrated, reference, random_episode(candidate.spec, 50))
    (gate,) = bundle.manifest.gates
    assert (gate.threshold, gate.expected_write_rate) == (0.5, 0.3)
    assert "an episode" in str(gate.expected_from)
    assert bundle.manifest.calibration is not None
    assert "calibration.json" in contents(tmp_path / "b")
    # The graph is the same: a threshold is data.
    assert calibrated.graph == candidate.graph


def test_a_record_of_other_weights_or_gates_is_refused(candidate: Candidate) -> None:
    foreign = msgspec.structs.replace(record_for(candidate), model_sha256="0" * 64)
    with pytest.raises(CalibrationError, match="another model"):
        candidate.calibrated(foreign)
    with pytest.raises(CalibrationError, match="lacks"):
        candidate.calibrated(record_for(candidate, gate="other"))


@pytest.mark.case("B16")
def test_two_records_set_two_gates_and_one_gate_is_not_set_twice(candidate: Candidate) -> None:
    (gate,) = candidate.spec.gates
    second = msgspec.structs.replace(gate, name="second", threshold_input=None)
    states = (*candidate.spec.states, StateSpec("other", (1, 2), gate="second"))
    spec = msgspec.structs.replace(candidate.spec, gates=(gate, second), states=states)
    two = replace(candidate, spec=spec)
    first = two.calibrated(record_for(two))
    both = first.calibrated(record_for(two, gate="second"))
    assert [g.threshold for g in both.spec.gates] == [0.5, 0.5]
    assert both.calibration is not None
    assert [g.gate for g in both.calibration.gates] == ["gate", "second"]
    with pytest.raises(CalibrationError, match="set the same gate"):
        first.calibrated(record_for(two))


def test_the_shipped_policy_agrees_with_torch_for_a_thousand_steps(aura_bundle: Path) -> None:
    manifest = Bundle.open(aura_bundle).manifest
    receipt = manifest.verification
    assert manifest.state_bytes == 4224
    assert receipt is not None and receipt.steps == 1000 and receipt.gate_flips == 0
    assert 50 < receipt.gate_openings["gate"] < 300
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-4


MODULE = """
import torch
from torch import nn
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models import StepResult

class Shut(nn.Module):
    def step_spec(self):
        return StepSpec((TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),),
                        (StateSpec("s", (1, 2), gate="g"),), (GateSpec("g", threshold=99.0),))

    def step(self, inputs, states):
        s = states["s"] + inputs["x"]
        return StepResult({"y": s}, {"s": s}, {"g": inputs["x"].max(-1).values})
"""


@pytest.mark.slow
def test_a_users_file_becomes_a_bundle_and_a_shut_gate_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    out = tmp_path / "b"
    result = CliRunner().invoke(main, ["export", f"{tmp_path}/mine.py:Shut", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "never open" in result.stderr
    arguments = ["export", f"{tmp_path}/mine.py:Shut", "--out", str(out), "--steps", "9", "--json"]
    again = CliRunner().invoke(main, arguments)
    assert json.loads(again.stdout)["verification"]["steps"] == 9


def test_an_unknown_target_or_model_is_wrong_use_and_writes_nothing(tmp_path: Path) -> None:
    out = str(tmp_path / "b")
    for arguments in (
        ["export", "aura-hard", "--target", "toaster", "--out", out],
        ["export", "nope", "--out", out],
        ["export", "aura-hard", "--max-state-bytes", "4223", "--steps", "3", "--out", out],
    ):
        assert CliRunner().invoke(main, arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_only_the_host_decides_never_swaps_a_closed_state(tmp_path: Path) -> None:
    """The model always computes a next state; the threshold alone keeps the old one."""
    from stategate.runtime import Session

    (tmp_path / "mine.py").write_text(MODULE)
    out = tmp_path / "b"
    CliRunner().invoke(main, ["export", f"{tmp_path}/mine.py:Shut", "--out", str(out)])
    with Session.open(out) as session:
        for value in (1.0, 100.0, 5.0):
            session.step(x=np.full((1, 2), value, np.float32))
        assert session.state("s").tolist() == [[100.0, 100.0]]
        assert (session.ledger.writes, session.ledger.quiet_steps) == (1, 2)


def test_a_recording_is_repeated_to_the_steps_that_were_promised(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    recording = tmp_path / "recording.npz"
    recording.write_bytes(Episode({"x": np.full((7, 1, 2), 100.0, np.float32)}).to_bytes())
    arguments = ["export", f"{tmp_path}/mine.py:Shut", "--episode", str(recording), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--steps", "50", "--out", str(tmp_path / "b")])
    assert json.loads(result.stdout)["verification"]["steps"] == 50


def test_the_manifest_names_the_users_file_and_not_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from helper import Shut")
    (tmp_path / "helper.py").write_text(MODULE)
    out = tmp_path / "b"
    arguments = ["export", f"{tmp_path}/mine.py:Shut", "--steps", "5", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert Bundle.open(out).manifest.model.source == "mine.py:Shut"
    assert str(tmp_path).encode() not in b"".join(contents(out).values())


def test_a_file_that_exits_is_an_error_and_not_a_success(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; sys.exit(0)\nclass M: ...\n")
    out = str(tmp_path / "b")
    result = CliRunner().invoke(main, ["export", f"{tmp_path}/mine.py:M", "--out", out])
    assert result.exit_code == 2 and "SystemExit" in result.output


def test_a_memory_that_a_reset_leaves_is_refused(
    tmp_path: Path, candidate: Candidate, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaks:
        """A session whose engine remembers that it was reset."""

        def __init__(self, session: Stepper) -> None:
            self._session, self._resets = session, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self._session, name)

        def reset(self) -> None:
            self._session.reset()
            self._resets += 1

        def step(self, /, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            answer = self._session.step(**inputs)
            return {name: array + self._resets * 1e-6 for name, array in answer.items()}

    monkeypatch.setattr(verify, "open_stepper", lambda folder: Leaks(open_stepper(folder)))
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    episode = random_episode(candidate.spec, 20)
    with pytest.raises(ParityError, match="otherwise after a reset, in step 0"):
        seal(tmp_path / "b", candidate, reference, episode)
    assert not (tmp_path / "b").exists()
