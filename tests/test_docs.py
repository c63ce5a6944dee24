"""What the documents say is so: commands exist, links lead somewhere, the tutorial works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lab.manual import PAGES as PAGES_FROM_CODE
from lab.manual import commands, filled
from lab.words import INSTALLED, OUTSIDE
from stategate.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_option_has_help() -> None:
    for ctx in commands(main, click.Context(main, info_name="stategate")):
        for parameter in ctx.command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{ctx.command_path} {parameter.name}"


def commands_in(text: str) -> list[str]:
    """What a page tells somebody to type: in fenced and indented blocks, and in code spans."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^    (?=stategate )(.*)", prose, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    typed = (line.strip().removeprefix("$ ") for line in (*lines, *spans))
    return [line for line in typed if line.startswith("stategate ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_that_is_shown_has_a_verb_and_options_that_exist(page: Path) -> None:
    for line in commands_in(page.read_text()):
        _, *words = shlex.split(line, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            ctx = click.Context(command)
            inner = command.get_command(ctx, words[0])
            if inner is None:
                default = getattr(command, "default", None)
                if words[0] == "VERB":
                    break
                assert default is not None, line
                inner, words = command.get_command(ctx, default), ["", *words]
                assert inner is not None
            command, words = inner, words[1:]
        if isinstance(command, click.Group) and words:
            continue
        ctx = click.Context(command)
        try:  # names alone; nothing is run
            parsed, _, _ = command.make_parser(ctx).parse_args(words)
        except click.BadOptionUsage:  # prose may name an option without a value
            continue
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.type, click.Choice):
                values = parsed.get(str(option.name)) or []
                for value in [values] if isinstance(values, str) else values:
                    option.type.convert(value, option, ctx)


def test_an_option_that_may_be_repeated_says_so() -> None:
    for ctx in commands(main, click.Context(main, info_name="stategate")):
        for option in ctx.command.params:
            if isinstance(option, click.Option) and option.multiple:
                assert re.search("repeat|again", option.help or "", re.IGNORECASE), option.opts


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            file, _, heading = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            assert not heading or heading in anchors_of(linked.read_text()), target


def anchors_of(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = (heading.lower() for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_make_verb_that_is_named_exists(page: Path) -> None:
    rules = (ROOT / "Makefile").read_text() + (ROOT / "lab" / "lab.mk").read_text()
    verbs = set(re.findall(r"^([a-z0-9-]+):", rules, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", page.read_text())) <= verbs


def test_make_help_lists_every_verb() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for verb in [
        "help",
        "setup",
        "dev",
        "run",
        "test",
        "check",
        "lint",
        "types",
        "export",
        "bench",
        "clean",
    ]:
        assert re.search(rf"^{verb}\s", shown, re.MULTILINE), verb


def follow(page: str, folder: Path, commands: Callable[[str], str] | None = None) -> list[str]:
    """Do what a page says, block by block; what each block printed.

    ``commands`` runs blocks of stategate's own commands instead of a shell.
    """
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"(?:^`([\w.]+)`\n)?^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for name, language, body in blocks:
        if language == "python":
            assert name, "a Python block needs the name of its file above it"
            (folder / name).write_text(body)
        elif language == "bash" and commands and body.startswith("stategate "):
            printed.append(commands(body))
        elif language == "bash":
            done = subprocess.run(
                ["bash", "-euc", body],
                cwd=folder,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{body}\n{done.stdout}{done.stderr}"
            printed.append(done.stdout)
    return printed


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Runs a block of stategate's commands here, where torch is loaded already."""
    monkeypatch.chdir(tmp_path)

    def run(block: str) -> str:
        done = []
        for line in block.splitlines():
            done.append(CliRunner().invoke(main, shlex.split(line)[1:]))
            assert done[-1].exit_code == 0, f"{line}\n{done[-1].output}"
        return "".join(result.stdout for result in done)

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_tutorial_works_word_for_word(
    tmp_path: Path, in_this_process: Callable[[str], str]
) -> None:
    printed = follow("tutorial/index.md", tmp_path, in_this_process)
    first = next(text for text in printed if "restored: None" in text)
    assert "Ledger(steps=1000" in first
    assert "restored: Restored(" in printed[-1]
    assert "Ledger(steps=2000" in printed[-1]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["expected_write_rate.novel"] == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_the_page_about_pools_works_word_for_word(tmp_path: Path) -> None:
    printed = follow("guides/pool.md", tmp_path)
    assert "Ledger(steps=100" in printed[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_page_about_models_of_your_own_works_word_for_word(
    tmp_path: Path, in_this_process: Callable[[str], str]
) -> None:
    printed = follow("guides/bring-your-own.md", tmp_path, in_this_process)
    assert printed[-2].startswith("(1, 3) [100] (1, 1, 16)")


@pytest.mark.slow
def test_the_page_about_chunks_works_word_for_word(
    tmp_path: Path, in_this_process: Callable[[str], str]
) -> None:
    printed = follow("guides/chunks.md", tmp_path, in_this_process)
    assert "writes 10.0% of steps" in printed[0]
    assert printed[1].splitlines()[-1] == "(1, 7) 10 times the network ran"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_about_adapters_works_word_for_word(
    tmp_path: Path, in_this_process: Callable[[str], str]
) -> None:
    pytest.importorskip("transformers", reason="transformers 5.23 needs Python 3.11")
    printed = follow("guides/adapters.md", tmp_path, in_this_process)
    assert len(printed) >= 9
    assert all("verified over" in text for text in printed)


@pytest.mark.slow
def test_the_page_about_updates_works_word_for_word(tmp_path: Path) -> None:
    first, updated = follow("guides/install.md", tmp_path)
    assert "release 2" in first and "steady: the first bundle" in first
    assert "steady 2 2500 confirmed after" in updated
    assert updated.splitlines()[-1].startswith("steady 0 2600 taken back by a person")


@pytest.mark.slow
def test_the_page_about_frozen_policies_works_word_for_word(tmp_path: Path) -> None:
    (printed,) = follow("guides/wrap.md", tmp_path)
    assert "times fewer writes than always" in printed
    assert "verified over" in printed
    assert (tmp_path / "build" / "wrapped.json").exists()


def test_the_page_about_episodes_works_word_for_word(tmp_path: Path) -> None:
    printed = follow("guides/episodes.md", tmp_path)
    assert "200 steps at 50 Hz" in printed[0]
    assert "logs.npz 200 50.0" in printed[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_recording_becomes_a_bundle_word_for_word(
    tmp_path: Path, in_this_process: Callable[[str], str]
) -> None:
    shown, made, written = follow("tutorial/recording.md", tmp_path, in_this_process)
    assert "/joints.position: 4 float64, 12,000 at 100 Hz" in shown
    assert "passed" in made and "verified" in made
    assert "steps in 1 episodes" in written


@pytest.mark.slow
def test_the_page_about_the_black_box_works_word_for_word(tmp_path: Path) -> None:
    commands, own, parted = follow("guides/black-box.md", tmp_path)
    assert commands.count("passed: bit for bit") == 2 and "step          2000" in commands
    assert own.startswith("True ") and "FAILED: they part at step" in parted
    assert json.loads((tmp_path / "replay.json").read_text())["passed"]


@pytest.mark.slow
def test_the_recipe_for_a_new_target_works_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (ROOT / "docs" / "guides" / "contributing.md").read_text().split("## Add a memory")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", textwrap.dedent(recipe), re.DOTALL)
    toml, commands = (textwrap.dedent(text) for _, text in blocks)
    shutil.copytree(ROOT / "targets", tmp_path / "targets")
    (tmp_path / "targets" / "profiles" / "my-board.toml").write_text(toml)
    installed = resources.files
    monkeypatch.setattr(
        "stategate.targets.toml_tables.resources.files",
        lambda room: tmp_path / "targets" if room == "stategate.targets" else installed(room),
    )
    for command in commands.strip().splitlines():
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
        assert "my-board" in done.output or "My board" in done.output


# The changelog is left out: its lines are of the days when they were written.
@pytest.mark.parametrize(
    "page", sorted({*PAGES} - {ROOT / "CHANGELOG.md"}), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_a_page_names_files_of_the_code_that_exist(page: Path) -> None:
    rooms = "|".join((*INSTALLED, *OUTSIDE))
    named = set(re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text()))
    new = {"targets/profiles/my-board.toml"}  # the recipe's
    assert {path for path in named if not (ROOT / path).exists()} <= new


@pytest.mark.parametrize("page", PAGES_FROM_CODE)
def test_a_page_that_the_code_knows_says_what_the_code_says(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == filled(page), "run: python -m lab manual"


def test_the_ten_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "README.md", "exec"), {"__name__": "readme"})
    assert "steps=1" in capsys.readouterr().out
