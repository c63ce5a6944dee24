"""Which results count as noise, and which as changed, on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.evidence.compare import Share, compare, compare_evidence, fisher


def verdicts(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, str]:
    return {finding.field: finding.verdict for finding in compare(before, after)}


def trainings(*rates: float) -> list[dict[str, Any]]:
    return [{"model": "m", "seed": seed, "write_rate": rate} for seed, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"p50_us": 10.0}, {"p50_us": 12.0}, "noise"),
        ({"p50_us": 10.0}, {"p50_us": 13.0}, "changed"),
        ({"p50_us": 13.0}, {"p50_us": 10.0}, "changed"),
        ({"state_bytes": 4224}, {"state_bytes": 4225}, "changed"),
        ({"verdict": "accepted"}, {"verdict": "halted"}, "changed"),
        ({"right": 90, "judged": 100}, {"right": 88, "judged": 100}, "noise"),
        ({"right": 900, "judged": 1000}, {"right": 800, "judged": 1000}, "changed"),
        ({"write_rate": 0.1}, {"write_rate": 0.11}, "unclear"),
        ({"digest": "a"}, {"digest": "b"}, "digest"),
    ],
)
def test_a_figure_is_judged_by_what_it_is(before: dict, after: dict, verdict: str) -> None:
    field = next(iter(before))
    assert verdicts([{"model": "m", **before}], [{"model": "m", **after}])[field] == verdict


def test_trainings_are_judged_by_their_spread() -> None:
    assert verdicts(trainings(0.1, 0.12, 0.14), trainings(0.13, 0.11, 0.12)) == {
        "write_rate": "noise"
    }
    assert verdicts(trainings(0.1, 0.101, 0.102), trainings(0.2, 0.201, 0.202)) == {
        "write_rate": "changed"
    }


def test_a_training_that_is_missing_is_said() -> None:
    assert verdicts(trainings(0.1, 0.2), trainings(0.1)) == {"write_rate": "gone"}
    assert verdicts(trainings(0.1), trainings(0.1, 0.2)) == {"write_rate": "same"}


def test_a_row_that_is_gone_is_no_success(tmp_path: Path) -> None:
    rows = [{"model": "m", "plan": plan, "p50_us": 1.0} for plan in ("float32", "int8")]
    (tmp_path / "old.json").write_text(json.dumps(rows))
    (tmp_path / "new.json").write_text(json.dumps(rows[:1]))
    paths = [str(tmp_path / name) for name in ("old.json", "new.json")]
    lost = CliRunner().invoke(compare_evidence, [paths[1], "--against", paths[0]])
    assert lost.exit_code == 1 and "gone: model=m plan=int8: p50_us 1 -> nothing" in lost.output
    more = CliRunner().invoke(compare_evidence, [paths[0], "--against", paths[1]])
    assert more.exit_code == 0 and "1 new" in more.output


def test_every_result_of_the_repository_can_be_matched() -> None:
    for path in sorted(Path("docs/evidence").glob("*.json")):
        rows = json.loads(path.read_text())
        rows = rows.get("rows", [rows]) if isinstance(rows, dict) else rows
        assert {finding.verdict for finding in compare(rows, rows)} == {"same"}, path


def test_fishers_test_gives_the_published_values() -> None:
    # Tea tasting (Fisher 1935), and two tables of R's documentation of fisher.test.
    assert fisher(Share(3, 4), Share(1, 4)) == pytest.approx(0.4857, abs=1e-4)
    assert fisher(Share(2, 17), Share(10, 13)) == pytest.approx(0.0005367, abs=1e-6)
    assert fisher(Share(5, 5), Share(5, 5)) == 1.0
