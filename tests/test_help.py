"""Help and usage errors need nothing but the base dependencies, and say what they say at once."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from stategate.cli.export import export
from stategate.cli.main import COMMANDS, main
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


def every_verb() -> list[list[str]]:
    context = click.Context(main)
    lines = []
    for verb in COMMANDS:
        command = main.get_command(context, verb)
        lines += [[verb], *([verb, inner] for inner in getattr(command, "commands", {}))]
    return lines


@pytest.mark.case("D7")
def test_help_of_every_verb_loads_the_base_dependencies_alone() -> None:
    lines = [["--help"], ["--version"], *([*line, "--help"] for line in every_verb())]
    results, loaded = with_base_alone(*lines)
    for line, (code, text) in zip(lines, results, strict=True):
        assert code == 0, (line, text)
        assert line == ["--version"] or text.startswith("Usage: stategate"), (line, text)
    assert loaded == BASE


@pytest.mark.case("D7")
def test_usage_errors_of_every_verb_load_the_base_dependencies_alone() -> None:
    lines = [[*line, "--no-such-option"] for line in every_verb()]
    results, loaded = with_base_alone(*lines, ["no-such-verb"])
    for line, (code, text) in zip([*lines, []], results, strict=True):
        assert code == 2, (line, text)
        assert "No such" in text, (line, text)
    assert loaded == BASE


@pytest.mark.case("D7")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("adopt policy.onnx --out b --dim batch", "not of the form NAME=VALUE"),
        ("export aura-hard --out b --precision int3", "no such precision"),
        ("export aura-hard --out b --target abacus", "unknown target"),
        ("export nothing.py:make --out b", "no such Python file"),
        ("calibrate aura-hard --out c.json --cost-missed 1", "go together"),
        ("calibrate aura-hard --out c.json --accuracy 0.9 --write-rate 0.1", "by one rule"),
        ("train-gate aura-hard --out gate.bin", "suffix .safetensors"),
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
    assert list(operators.choices) == [*(one.value for one in Operators), "fastest"]
