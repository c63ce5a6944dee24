from __future__ import annotations

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.evidence.controlled.rows import At, Row, order
from lab.evidence.intervals import over_seeds, wilson
from lab.evidence.pages import filled, pages, table
from lab.evidence.records import digest_of, read_rows, write_rows
from stategate.contract.errors import SpecError


def row(seed: int, arm: str = "learned") -> Row:
    at = (At(64, 2, 30, 29, 16),)
    return Row(arm, "hard", seed, "hard", -2.0, 10, 4224, 256, "native", digest_of(arm, seed), at)


def test_rows_come_back_as_they_were_written_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_rows(path, [row(1, "always"), row(1), row(0)], order)
    assert read_rows(path, Row) == [row(0), row(1), row(1, "always")]
    first = path.read_bytes()
    write_rows(path, [row(0), row(1, "always"), row(1)], order)
    assert path.read_bytes() == first


def test_there_are_no_rows_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.json", Row) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"seed":0', '"seed":"zero"'),
        lambda text: text.replace('"seed":0', '"seed":0,"mood":1'),
        lambda text: text.replace('"digest":', '"dugest":'),
        lambda text: text[: len(text) // 2],
    ],
    ids=["type", "unknown field", "missing field", "half of it"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "rows.json"
    write_rows(path, [row(0)], order)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(SpecError, match=r"rows\.json does not hold results"):
        read_rows(path, Row)


def test_a_digest_changes_with_everything_that_is_asked() -> None:
    asked = {digest_of("hard", 1, -2.0), digest_of("hard", 2, -2.0), digest_of("hard", 1, 0.0)}
    assert len(asked) == 3


@pytest.mark.parametrize(("right", "judged"), [(0, 10), (10, 10), (7, 10), (998, 1000)])
def test_wilsons_ends_are_the_roots_of_the_score_equation(right: int, judged: int) -> None:
    interval = wilson(right, judged)
    for end in (interval.low, interval.high):
        # (share - p)^2 = z^2 p (1 - p) / n, the definition
        gap = (right / judged - end) ** 2
        assert gap == pytest.approx(1.959964**2 * end * (1 - end) / judged, abs=1e-7)
    assert 0.0 <= interval.low + 1e-12 <= interval.high <= 1.0 + 1e-12


def test_wilson_agrees_with_the_textbook_at_ten_of_ten() -> None:
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)


def test_the_interval_over_two_seeds_has_one_degree_of_freedom() -> None:
    interval = over_seeds([1.0, 3.0])
    assert interval is not None
    assert interval.estimate == 2.0
    # t(1) at 97.5 % is tan(0.475 pi); the standard error of two values is half their distance.
    assert interval.high - 2.0 == pytest.approx(math.tan(0.475 * math.pi), rel=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.5]) is None


def test_a_page_keeps_what_is_outside_of_its_markers() -> None:
    page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n"
    made = filled(page, {"a": table(["x"], [["1"]])})
    assert made == "before\n<!-- a -->\n\n| x |\n| --- |\n| 1 |\n\n<!-- end of a -->\nafter\n"
    assert filled(made, {"a": table(["x"], [["1"]])}) == made


@pytest.mark.parametrize("page", ["", "<!-- a -->", "<!-- end of a -->", "<!-- a --><!-- a -->"])
def test_a_page_without_a_place_is_refused(page: str) -> None:
    with pytest.raises(SpecError, match="no place"):
        filled(page, {"a": "piece"})


@pytest.mark.parametrize(
    ("page", "rows", "says"),
    [
        (None, None, "No such file"),
        ("no markers", None, "no place"),
        (None, "[1]", "does not hold results"),
        (None, "{", "does not hold results"),
    ],
    ids=["no page", "no place", "other rows", "half of them"],
)
def test_pages_that_cannot_be_made_are_reported_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: str | None,
    rows: str | None,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    if page is not None:
        (tmp_path / "docs" / "evidence" / "index.md").write_text(page)
    if rows is not None:
        (tmp_path / "docs" / "evidence" / "controlled.json").write_text(rows)
    result = CliRunner().invoke(pages)
    assert result.exit_code == 2
    assert says in result.stderr
    assert isinstance(result.exception, SystemExit)
