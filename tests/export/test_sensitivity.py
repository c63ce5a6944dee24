"""The search for a plan: what is sensitive goes back to float, and no trial is made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.errors import CalibrationError, ExportError
from stategate.contract.precision import PRESETS, PrecisionPlan
from stategate.export import sensitivity
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.precision import lowered
from stategate.export.seal.verify import Limits, compare
from stategate.export.sensitivity import Search
from stategate.models.load import load_model

STEPS = 60
LIMITS = Limits(0.05, 0.0)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


def search(trials: Path, seed: int = 4) -> Search:
    loaded = load_model("aura-hard")
    assert loaded.episode is not None
    candidate = candidate_from(loaded)
    return Search(
        candidate,
        reference_for(loaded.model, candidate),
        loaded.episode(STEPS, seed),
        PRESETS["int4-weights"],
        None,
        trials,
    )


@pytest.mark.slow
def test_the_proposed_plan_keeps_the_limits_and_cannot_be_had_cheaper(
    trials: Path, tmp_path: Path
) -> None:
    looking = search(trials)
    found = looking.propose(LIMITS)
    quantised = set(found.together[-1].groups)
    assert set(found.plan.keep_float) == {"gates", "recurrence", *looking.groups} - quantised
    assert 0 < len(quantised) < len(looking.groups) == len(found.alone)
    breaking = {t.groups[0] for t in found.alone if not t.within(LIMITS)}
    assert breaking and not breaking & quantised
    assert all(not trial.within(LIMITS) for trial in found.together[:-1])
    loaded = load_model("aura-hard")
    assert loaded.episode is not None
    candidate = candidate_from(loaded)
    smaller = lowered(candidate, found.plan, None)
    bundle = sensitivity.draft(tmp_path / "b", smaller)
    seen = compare(bundle.path, reference_for(loaded.model, candidate), loaded.episode(STEPS, 4))
    assert seen.output_error.max() == pytest.approx(found.together[-1].output_error)
    assert seen.output_error.max() <= LIMITS.error and seen.flips == 0


@pytest.mark.slow
def test_a_trial_is_made_once_and_only_its_own_question_finds_it(
    trials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = search(trials).propose(LIMITS)

    def again(*_: object) -> None:
        raise AssertionError("stepped again")

    monkeypatch.setattr(sensitivity, "compare", again)
    assert search(trials).propose(LIMITS) == before
    with pytest.raises(AssertionError, match="stepped again"):
        search(trials, seed=5).propose(LIMITS)


def test_trials_store_states_as_the_plan_says(tmp_path: Path) -> None:
    looking = search(tmp_path)
    plain = looking.trial(("to_k",))
    looking._plan = PrecisionPlan("int4", state_storage={"S": "int8"})
    assert looking.trial(("to_k",)).output_error != plain.output_error
    looking._plan = PrecisionPlan("int4", state_storage={"nothing": "int8"})
    with pytest.raises(ExportError, match="no such state"):
        looking.trial(("to_k",))


@pytest.mark.slow
def test_a_damaged_trial_is_made_anew(tmp_path: Path) -> None:
    before = search(tmp_path).propose(LIMITS)
    for kept in tmp_path.iterdir():
        kept.write_bytes(kept.read_bytes()[:3])
    assert search(tmp_path).propose(LIMITS) == before


def test_limits_that_nothing_keeps_are_reported_with_the_nearest(trials: Path) -> None:
    with pytest.raises(CalibrationError, match="to_beta, the least sensitive of 7"):
        search(trials).propose(Limits(1e-9, 0.0))


@pytest.mark.slow
def test_the_command_writes_a_plan_that_export_takes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    base = tmp_path / "base.json"
    base.write_text('{"weights": "int4", "keep_float": ["gates", "to_*", "encode"]}')
    common = ["aura-hard", "--steps", str(STEPS), "--max-output-error", "0.04"]
    result = CliRunner().invoke(
        main, ["sensitivity", *common, "--precision", str(base), "--out", str(plan), "--json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.output[result.output.index("{") :])
    assert PrecisionPlan.named(str(plan)).keep_float == tuple(told["plan"]["keep_float"])
    assert {trial["groups"][0] for trial in told["alone"]} == {"head_in", "head_out"}
    arguments = ["export", *common, "--precision", str(plan), "--out", str(tmp_path / "small")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    graph = Bundle.open(tmp_path / "small").manifest.step_graph
    assert graph.precision == "int4-weights (own plan)"
    assert graph.domains == ("com.microsoft",)
