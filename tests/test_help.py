"""Help and usage errors need nothing but the base dependencies, and say what they say at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.export import export
from stategate.cli.main import GROUPS, SECTIONS, every_verb, main
from stategate.cli.main import OLD as OLD_VERBS
from stategate.contract import Episode
from stategate.models.operators import Operators

BASE = {"click", "msgspec", "numpy", "stategate"}
# Each command line in one process: what it exits with, and the first line that it prints.
PROBE = """
import contextlib, importlib.machinery, io, json, sys

BASE = set(json.loads(sys.argv[1]))
installed = importlib.machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    spec = installed(name, path, target)
    top = name.partition(".")[0]
    if spec is None or top in BASE or top in sys.stdlib_module_names or top.startswith("_"):
        return spec
    raise ModuleNotFoundError(f"{name} is blocked", name=name)

importlib.machinery.PathFinder.find_spec = find_spec
from stategate.cli.main import main
results = []
for arguments in json.loads(sys.argv[2]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments, prog_name="stategate")
        except SystemExit as end:
            code = end.code
    results.append([code, printed.getvalue()])
print(json.dumps([results, sorted(sys.modules)]))
"""


def with_base_alone(*lines: list[str]) -> tuple[list[list], set[str]]:
    """Exit code and text of each command line, and the packages that all of them loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(sorted(BASE)), json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    results, modules = json.loads(done.stdout)
    loaded = {name.partition(".")[0] for name in modules if not name.startswith("_")}
    return results, loaded - set(sys.stdlib_module_names)


VERBS = {" ".join(words): command for words, command in every_verb(main)}
OLD = list(OLD_VERBS)


def every_line() -> list[list[str]]:
    return [line.split() for line in [*VERBS, *OLD]]


@pytest.mark.case("D7")
def test_help_of_every_verb_loads_the_base_dependencies_alone() -> None:
    lines = [["--help"], ["--version"], *([*line, "--help"] for line in every_line())]
    results, loaded = with_base_alone(*lines)
    for line, (code, text) in zip(lines, results, strict=True):
        assert code == 0, (line, text)
        assert line == ["--version"] or text.startswith("Usage: stategate"), (line, text)
    assert loaded == BASE


@pytest.mark.case("D7")
def test_usage_errors_of_every_verb_load_the_base_dependencies_alone() -> None:
    lines = [[*line, "--no-such-option"] for line in every_line()]
    results, loaded = with_base_alone(*lines, ["no-such-verb"])
    for line, (code, text) in zip([*lines, []], results, strict=True):
        assert code == 2, (line, text)
        assert "No such" in text, (line, text)
    assert loaded == BASE


def test_help_of_groups_and_a_wrong_verb_load_no_numpy() -> None:
    lines = [["--help"], ["--version"], ["device", "--help"], ["model", "--help"], ["no-such-verb"]]
    results, loaded = with_base_alone(*lines)
    assert [code for code, _ in results] == [0, 0, 0, 0, 2]
    assert "numpy" not in loaded


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_every_number_on_the_command_line_is_finite(number: str) -> None:
    options = [
        (verb, option)
        for verb, command in VERBS.items()
        for option in command.params
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(options) > 30
    for verb, option in options:
        with pytest.raises(click.BadParameter):
            option.type.convert(number, option, click.Context(VERBS[verb]))


@pytest.mark.case("D7")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("adopt policy.onnx --out b --dim batch", "not of the form NAME=N"),
        ("export aura-hard --out b --precision int3", "no such precision"),
        ("export aura-hard --out b --target abacus", "unknown target"),
        ("export nothing.py:make --out b", "no such Python file"),
        ("calibrate aura-hard --out c.json --accuracy 0.9 --write-rate 0.1", "by one rule"),
        ("build-engine b --adopt-plan p --script 8.5", "--adopt-plan takes a plan as it is"),
        ("bench b --quick --official", "contradict each other"),
        ("drift . . --episode . --out d --accept me:it", "--seal BUNDLE"),
        ("fits aura-hard --all --target raspberry-pi-5", "contradict each other"),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_base_dependencies_alone(
    line: str, said: str
) -> None:
    ((code, text),), loaded = with_base_alone(line.split())
    assert said in " ".join(text.split())
    assert code in (1, 2)
    assert loaded == BASE


def test_a_verb_whose_library_is_missing_names_the_extra_that_brings_it() -> None:
    results, _ = with_base_alone(["zoo"], ["export", "aura-hard", "--out", "never-written"])
    for code, text in results:
        assert code == 2
        assert 'pip install "stategate[export]"' in text


def test_the_operators_that_help_lists_are_those_of_the_models() -> None:
    (operators,) = [option.type for option in export.params if option.name == "operators"]
    assert list(operators.choices) == [one.value for one in Operators]


def test_the_first_screen_has_some_twenty_verbs() -> None:
    listed = main.list_commands(click.Context(main))
    assert 12 <= len(listed) <= 25
    assert set(listed) >= {name for verbs in SECTIONS.values() for name in verbs}


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example_that_parses(verb: str) -> None:
    text = VERBS[verb].get_help(click.Context(VERBS[verb], info_name=f"stategate {verb}"))
    assert "\b" not in text
    block = re.split(r"Examples?:\n", text)[1].partition("\n\n")[0]
    lines = block.replace("\\\n", " ").strip().splitlines()
    assert any(" ".join(line.split()).startswith(f"stategate {verb}") for line in lines)
    for line in lines:
        _, *words = shlex.split(line.partition(">")[0], comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            context = click.Context(command)
            inner = command.get_command(context, words[0])
            if inner is None:
                inner = command.get_command(context, command.default)  # type: ignore[attr-defined]
                words = ["", *words]
            assert inner is not None, line
            command, words = inner, words[1:]
        context = click.Context(command)
        given, _, _ = command.make_parser(context).parse_args([*words])
        for option in command.params:
            if isinstance(option, click.Option) and option.required and "--help" not in words:
                assert option.name in given, (line, option.name)


@pytest.mark.parametrize("verb", [verb for verb, command in VERBS.items() if command.params])
def test_every_verb_that_gives_a_result_offers_json(verb: str) -> None:
    names = {name for option in VERBS[verb].params for name in option.opts}
    # A script to source, and a page that is served until it is stopped: neither ends in a result.
    assert "--json" in names or verb in ("completion", "watch")


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_is_the_same_verb(old: str) -> None:
    context = click.Context(main)
    new = [
        (group, name)
        for group, verbs in GROUPS.items()
        for name, verb in verbs.verbs.items()
        if verb is OLD_VERBS[old]
    ]
    assert main.get_command(context, old) is VERBS[" ".join(new[0])]
    assert old not in main.list_commands(context)


def test_a_bench_result_is_drawn_under_its_old_name_too() -> None:
    context = click.Context(main)
    bench = main.get_command(context, "bench")
    assert isinstance(bench, click.Group)
    assert bench.get_command(context, "report") is VERBS["report"]
    assert "report" not in bench.list_commands(context)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_stategate(shell: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_STATEGATE_COMPLETE" in result.output


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stategate ver", {"verify"}),
        ("stategate episodes ", {"show", "read", "write", "zoo", "wav", "gym", "record"}),
        ("stategate export --sta", {"--state-storage"}),
        ("stategate export --split q", {"quiet"}),
    ],
)
def test_verbs_and_options_are_completed(line: str, expected: set[str]) -> None:
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from stategate.cli.main import main; main(prog_name='stategate')"],
        env={
            **os.environ,
            "_STATEGATE_COMPLETE": "zsh_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.splitlines()[1::3]) == expected


def test_a_group_without_a_verb_means_its_default(tmp_path: Path) -> None:
    episode = tmp_path / "zooo.npz"
    episode.write_bytes(Episode({"x": np.zeros((3, 1), np.float32)}).to_bytes())
    outputs = [
        CliRunner().invoke(main, ["episodes", *verb, str(episode)]).stdout
        for verb in ([], ["show"], ["--json"])
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[2])
    noted = CliRunner().invoke(main, ["episodes", str(episode)]).stderr
    assert noted == "reading\n"
    assert "did you mean zoo?" in CliRunner().invoke(main, ["episodes", "zooo"]).output
