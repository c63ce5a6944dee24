"""The evidence of wrapping: its streams ask for what was shown, and its page shows its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lab.evidence.records import read_rows
from lab.evidence.wrap.page import contents
from lab.evidence.wrap.pictures import NO_LABEL, VALUES, Rates, draw
from lab.evidence.wrap.rows import Row
from lab.evidence.wrap.tasks import TASKS, episodes, targets

RESULTS = Path(__file__).parents[2] / "docs" / "evidence" / "wrap.json"


def test_what_is_asked_for_was_shown_last() -> None:
    pictures = draw(2, 3000, seed=4)
    for shown, answer in zip(pictures.shown, pictures.answer, strict=True):
        last: dict[int, int] = {}
        counted = 0
        for card, value in zip(shown, answer, strict=True):
            if card >= 0:
                last[card // VALUES] = card % VALUES
            if value != NO_LABEL:
                assert value in last.values()
                counted += 1
        assert counted / 3000 == pytest.approx(Rates().ask, abs=0.03)


def test_a_slower_stream_has_as_many_kinds_ten_times_as_rarely() -> None:
    slow = draw(1, 20_000, seed=1, rates=Rates().slowed(10)).answer
    assert np.mean(slow != NO_LABEL) == pytest.approx(0.015, abs=0.005)


def test_continuous_answers_are_corners_and_rest_elsewhere() -> None:
    right = targets(TASKS["numbers"], np.array([[NO_LABEL, 0, 3]]))
    assert right.tolist() == [[[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]]


@pytest.mark.slow
def test_a_policys_own_actions_are_there_in_every_frame() -> None:
    for episode in episodes(TASKS["own-actions"], 0)[:2]:
        assert (episode.labels["action"] >= 0).all()


def test_the_page_is_made_of_the_rows() -> None:
    rows = read_rows(RESULTS, Row)
    pieces = contents(RESULTS).pieces
    assert set(pieces) == {"wrap-pictures", "wrap-tmaze", "wrap-refused"}
    page = RESULTS.with_suffix(".md").read_text()
    assert all(piece in page for piece in pieces.values())
    assert {row.verdict for row in rows if not row.refusal} == {"verified"}


def test_the_gate_keeps_in_the_maze_what_writing_always_loses() -> None:
    rows = [row for row in read_rows(RESULTS, Row) if row.task == "tmaze"]
    assert len(rows) >= 3
    for row in rows:
        longest = max(rule.hold for rule in row.rules if rule.hold is not None)
        assert row.rule("gate", longest).score >= 0.9 > row.rule("always", longest).score
        assert row.rule("random", longest).score <= 0.6


def test_the_recipes_own_task_keeps_its_promise() -> None:
    rows = [row for row in read_rows(RESULTS, Row) if row.task == "random-backbone"]
    assert len(rows) >= 3
    for row in rows:
        gate, always = row.rule("gate"), row.rule("always")
        assert always.score - gate.score <= 0.005
        assert gate.write_rate <= 0.1
        assert row.rule("random").score < 0.5
