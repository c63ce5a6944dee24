"""The bound on the loss of value, by its closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lab.evidence.memory.bound import HORIZONS, bound, bound_rows
from lab.evidence.memory.commands import memory
from stategate.contract import Episode

SHARES = st.floats(0.01, 1)


def test_the_formula_of_the_paper() -> None:
    # 2 (0.1 + 0.9 * 0.2 * 3) / (1 - 0.9)
    assert bound(0.1, 0.2, 3.0, 10) == pytest.approx(12.8)


@given(asking=SHARES, repeating=SHARES)
def test_a_perfect_belief_loses_nothing(asking: float, repeating: float) -> None:
    rows = bound_rows(np.zeros(5), 0.0, asking, repeating)
    assert len(rows) == 3 * len(HORIZONS)
    assert all(row.bound == row.lost == 0 and not row.vacuous for row in rows)


@given(asking=SHARES, repeating=SHARES)
def test_one_answer_that_was_wholly_wrong_makes_the_theorem_vacuous(
    asking: float, repeating: float
) -> None:
    error = np.zeros(1000)
    error[0] = 1
    for row in bound_rows(error, 0.001, asking, repeating):
        if row.reading == "supremum":
            assert row.vacuous and row.bound >= 2 * row.horizon
        if row.reading == "q95":
            assert row.bound == 0


@given(
    error=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    asking=SHARES,
    repeating=SHARES,
)
def test_readings_are_ordered_and_wrong_answers_stay_below_the_theorem(
    error: list[float], asking: float, repeating: float
) -> None:
    belief = np.array(error)
    wrong = float((belief > 0.5).mean())  # another answer is believed in more only above a half
    rows = bound_rows(belief, wrong, asking, repeating)
    by = {(row.reading, row.horizon): row for row in rows}
    for horizon in HORIZONS:
        top = by["supremum", horizon]
        assert top.bound >= by["q95", horizon].bound
        assert top.bound >= by["mean", horizon].bound
        assert top.lost <= top.bound


def test_bundles_without_queries_are_refused(aura_bundle: Path, tmp_path: Path) -> None:
    z = np.zeros((8, 1, 64), np.float32)
    for labels in ({}, {"action": np.full(8, -1)}):
        episode = tmp_path / "episode.npz"
        episode.write_bytes(Episode({"z": z}, labels=labels).to_bytes())
        out = tmp_path / "bound.json"
        done = CliRunner().invoke(
            memory, ["bound", str(aura_bundle), "--episode", str(episode), "--out", str(out)]
        )
        assert done.exit_code in (1, 2) and not out.exists()
        assert "nothing to judge" in done.output


def test_a_bundle_is_stepped_and_its_rows_are_kept(aura_bundle: Path, tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((8, 1, 64)).astype(np.float32)
    labels = {"action": np.array([-1, 3, -1, 0, 1, 2, -1, 7])}
    episode, out = tmp_path / "episode.npz", tmp_path / "bound.json"
    episode.write_bytes(Episode({"z": z}, labels=labels).to_bytes())
    done = CliRunner().invoke(
        memory, ["bound", str(aura_bundle), "--episode", str(episode), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    (told,) = json.loads(out.read_text())
    assert told["asked"] == 5 and told["steps"] == 8 and len(told["rows"]) == 15
