from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stategate
from lab.state_precision import FIT, FORMS, Rows, rule, summary
from stategate.models.zoo.catalogue import ZOO, entry
from stategate.runtime import Session


def cell(model: str, echo: float, error: float, form: str = "int8") -> dict:
    verdict = "bears" if error <= 0.01 else "does not"
    fields = {"model": model, "form": form, "seed": 0, "steps": 9000, "echo": echo}
    return fields | {"mean_error": error, "verdict": verdict}


def test_a_rule_takes_its_factor_from_some_families_and_counts_what_it_misses_in_others() -> None:
    cells = [cell(FIT[0], 0.001, 0.003), cell(FIT[1], 0.01, 0.03), cell("gru", 0.002, 0.006)]
    right = rule(cells, "echo")
    assert right["factor"] == pytest.approx(3.0)
    assert right["held_out"] == {"right": 1, "of": 1, "commoner": 1, "missed": []}
    # What a held-out family does leaves the factor alone, and is counted.
    wrong = rule([*cells, cell("kda", 0.0001, 0.5), cell("kda", 0.0, 0.5, "fed back")], "echo")
    assert wrong["factor"] == pytest.approx(3.0)
    assert wrong["held_out"]["missed"] == ["kda, int8"] and wrong["held_out"]["right"] == 1
    assert wrong["fed_back"]["right"] == 0
    assert "| kda | 1 | 9,000 | **0.5** |" in summary([cell("kda", 0.0001, 0.5)])
    assert set(FIT) < set(ZOO)


@pytest.mark.slow
def test_a_row_is_stored_as_a_bundle_stores_its_states(tmp_path: Path) -> None:
    model = entry("lstm").build()
    episode = entry("lstm").episode(80, 5)
    rows = Rows(model)
    answers = [rows.step({k: v[t] for k, v in episode.inputs.items()})["y"] for t in range(80)]
    for row, form in enumerate(rows.forms):
        stored = {} if form == "float32" else {"state_precision": "int8"}
        stategate.make(
            entry("lstm").build(), tmp_path / str(row), error_feedback=form == "fed back",
            steps=20, **stored,
        )  # fmt: skip
        with Session.open(tmp_path / str(row), health="off") as session:
            for t, inputs in enumerate(episode):
                right = session.step(**inputs)["y"]
                own = np.abs(answers[t][row] - right).max()
                assert own < 1e-5 + 0.1 * np.abs(answers[t][1] - answers[t][0]).max()
    assert np.abs(answers[-1][1] - answers[-1][0]).max() > 1e-5
    assert list(FORMS)[:3] == rows.forms
