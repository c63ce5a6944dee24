"""From demonstrations to rows, on a cart that needs no simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.evidence.records import read_rows
from lab.evidence.robot import cells as robot_cells
from lab.evidence.robot import commands as robot
from lab.evidence.robot import page as robot_page
from lab.evidence.robot.env import Body, HeldRobot
from lab.evidence.robot.page import draw, on_page
from lab.evidence.robot.rows import Cell, Row
from lab.evidence.robot.train import CUE, clone, demonstrate
from stategate.contract.errors import SpecError

BEGIN, END = "<!-- robot-tables -->", "<!-- end of robot-tables -->"
Make = Callable[[], Body]
FORMS = (
    robot_cells.Form("gru", None, "float32"),
    robot_cells.Form("gru", None, "float32", wiped=True),
    robot_cells.Form("gru", None, "int8"),
)


@pytest.fixture
def workshop(cart: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a policy that was trained a little; what is run is small."""
    monkeypatch.setitem(robot_cells.BODIES, "tmaze", cart)
    recipe = replace(robot_cells.RECIPES["tmaze", "gru"], demos=12, batch=4, iterations=2)
    monkeypatch.setitem(robot_cells.RECIPES, ("tmaze", "gru"), recipe)
    for module in (robot_cells, robot_page):
        monkeypatch.setattr(module, "FORMS", FORMS)
    done = CliRunner().invoke(
        robot.main, ["train", "tmaze", "gru", "--iterations", "3", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    yield tmp_path


def run(folder: Path, *more: str) -> int:
    options = ["--task", "tmaze", "--policy", "gru", "--hold", "2", "--episodes", "3"]
    files = ["--out", str(folder / "rows.json"), "--checkpoints", str(folder)]
    return CliRunner().invoke(robot.main, ["run", *options, *files, *more]).exit_code


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, driven = robot.drive, []

    def counted(env: HeldRobot, bundle: Path, cell: Cell, episodes: int, recipe: str) -> Row:
        if len(driven) == 2 and not (workshop / "again").exists():
            raise KeyboardInterrupt
        driven.append(cell)
        return drive(env, bundle, cell, episodes, recipe)

    monkeypatch.setattr(robot, "drive", counted)
    assert run(workshop) != 0
    assert len(read_rows(workshop / "rows.json", Row)) == 2
    (workshop / "again").touch()
    assert run(workshop) == 0
    rows = read_rows(workshop / "rows.json", Row)
    assert len(driven) == len(set(driven)) == len(rows) == 3
    assert run(workshop) == 0
    assert len(driven) == 3
    for row in rows:
        assert row.steps == row.writes
        assert row.written_bytes == row.steps * row.state_bytes
        assert 3 * (CUE + 2) < row.steps <= 3 * (CUE + 2 + 30)
    assert {row.cell.precision: row.state_bytes for row in rows} == {"float32": 256, "int8": 68}
    page = on_page(f"before {BEGIN} old {END} after", rows)
    assert page.startswith("before") and page.endswith("after") and " old " not in page
    assert page.count("| gru") == 3
    pictures = [workshop / f"{i}.svg" for i in range(2)]
    for picture in pictures:
        draw("tmaze", rows, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_a_missing_one_is_made(workshop: Path) -> None:
    weights = workshop / "tmaze-gru-0.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert run(workshop) == 2
    weights.write_bytes(raw)
    assert run(workshop, "--seed", "7") == 0
    assert {row.cell.seed for row in read_rows(workshop / "rows.json", Row)} == {7}
    card = weights.with_suffix(".json")
    card.write_text(card.read_text().replace('"recipe"', '"receipt"'))
    assert run(workshop) == 2


def test_trainings_share_a_line_with_the_interval_over_them() -> None:
    rows = [
        Row(Cell("tmaze", "gru", seed, "float32", None, 0), 40, right, 400, 400, 0, 256, "e", "r")
        for seed, right in ((1, 36), (0, 40), (2, 38))
    ]
    # Student's t for two degrees of freedom is 4.303; the standard deviation is 0.05.
    assert "| 40, 36, 38 (0.95 ± 0.12); 10 |" in on_page(f"{BEGIN}{END}", rows)
    # Wilson's interval of 40 of 40 is 40 / (40 + 1.96 * 1.96) to 1.
    assert "| 40 (0.91-1.00); 10 |" in on_page(f"{BEGIN}{END}", rows[1:2])


def test_a_page_without_a_place_for_tables_is_refused() -> None:
    for page in ("", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{END}{BEGIN}{END}"):
        with pytest.raises(SpecError, match="no place"):
            on_page(page, [])


def test_a_folder_that_takes_no_pictures_is_reported_in_a_sentence(tmp_path: Path) -> None:
    page = tmp_path / "evidence" / "page.md"
    page.parent.mkdir()
    page.write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "images").write_text("a file")
    rows = Path(__file__).parents[2] / robot.RESULTS
    asked = ["page", "--rows", str(rows), "--page", str(page)]
    result = CliRunner().invoke(robot.main, asked)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_the_expert_shows_what_it_wants_and_not_what_noise_made_of_it(cart: Make) -> None:
    demos = demonstrate(HeldRobot(cart()), 20)
    assert demos.reached == 1.0
    for i in range(20):
        wanted = demos.action[: int(demos.length[i]), i]
        assert wanted.abs().min() == 1.0
        assert wanted.unique().numel() == 1
    assert demos.length.min() > CUE
    assert (demos.start >= CUE).all()
    assert demos.start.max() <= CUE + 40


def test_the_same_recipe_gives_the_same_weights(cart: Make) -> None:
    demos = demonstrate(HeldRobot(cart()), 12)
    recipe = replace(robot_cells.RECIPES["tmaze", "aura"], iterations=3, batch=4)
    first, second = (clone(recipe, demos)[0].state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)
