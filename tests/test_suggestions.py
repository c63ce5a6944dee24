"""A name that does not exist is answered with those that were meant, before anything is loaded."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stategate.cli.main import OLD, SECTIONS, main
from stategate.contract.names import close_names
from stategate.models.load import load_model
from stategate.models.zoo.catalogue import ZOO
from stategate.targets import names as targets

OWN = """
raise SystemExit("this file was run, and it must only be read")

class Reader:
    def __init__(self, path):
        self.path = path

class MyPolicy:
    def __init__(self, width=8):
        self.width = width

def make():
    return MyPolicy()

def resized(width, *, by): ...
def _hidden(): ...
"""


def said(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.case("D13")
@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["exprot"], "did you mean export?"),
        (["bench", "comapre", "a", "b"], "did you mean compare?"),
        (["targets", "shwo"], "did you mean show?"),
        (["export", "aura-hard", "--precison", "int8"], "--precision"),
        (["export", "aura-hard", "--out", "b", "--precision", "int8weights"], "mean int8-weights"),
        (["export", "aura", "--out", "b"], "expected: aura-hard\n"),
        (["episode", "gdn2hard", "--out", "e.npz"], "expected: gdn2-hard"),
        (["fits", "aura-hard", "--target", "pi5"], "expected: raspberry-pi-5"),
        (["targets", "show", "orin"], "jetson-orin-nano-8gb"),
    ],
)
def test_a_mistyped_name_gets_the_ones_that_were_meant(line: list[str], meant: str) -> None:
    assert meant in said(*line)


@pytest.mark.case("D13")
def test_an_onnx_file_is_sent_to_adopt_with_a_command_that_adopt_reads(tmp_path: Path) -> None:
    file = tmp_path / "a policy.onnx"
    file.write_bytes(b"not a graph")
    text = said("export", file, "--out", tmp_path / "b")
    (remedy,) = [line for line in text.splitlines() if "what to do: " in line]
    verb, *arguments = shlex.split(remedy.partition("what to do: stategate ")[2])
    assert (verb, arguments[0]) == ("adopt", str(file))
    assert "Usage:" not in CliRunner().invoke(main, [verb, *arguments]).output


@pytest.mark.case("D13")
@pytest.mark.parametrize("verb", ["export", "calibrate", "sensitivity"])
def test_a_file_without_factory_is_answered_with_its_factories_and_not_run(
    verb: str, tmp_path: Path
) -> None:
    file = tmp_path / "my_policy.py"
    file.write_text(OWN)
    text = said(verb, file, "--out", tmp_path / "out")
    assert f"expected: {file}:MyPolicy or {file}:make\n" in text
    text = said(verb, f"{file}:MyPolcy", "--out", tmp_path / "out")
    assert f"expected: {file}:MyPolicy\n" in text
    assert "my_policy.py" in said(verb, f"{tmp_path / 'mypolicy.py'}:make", "--out", tmp_path / "o")


def test_an_expert_for_an_environment_is_looked_up_in_its_file_too(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium", reason="needs the extra gym")
    file = tmp_path / "expert.py"
    file.write_text(OWN)
    text = said("episode-gym", "CartPole-v1", "--policy", f"{file}:maek", "--out", tmp_path / "o")
    assert f"expected: {file}:make\n" in text


def test_names_that_no_reading_of_the_file_shows_are_left_to_running_it(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.py"
    file.write_text(
        "from stategate.models.memories.recurrent.cell import RecurrentStep\nfrom torch import nn\n"
        "globals()['late'] = lambda: RecurrentStep(nn.GRU(2, 3), nn.Linear(3, 1))\n"
    )
    assert load_model(f"{file}:late").name == "late"


def test_a_bundle_is_called_one(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "this is a bundle already" in said("export", tiny_bundle, "--out", tmp_path / "b")


def test_usage_errors_of_these_load_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom stategate.cli.main import main\n"
        "try: main(['export', 'aura', '--out', 'b'])\n"
        "except SystemExit as end: assert end.code == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_parts_words_and_typing_mistakes_are_close_and_others_are_not() -> None:
    assert close_names("pi5", targets())[0] == "raspberry-pi-5"
    assert all("orin" in name for name in close_names("orin", targets()))
    assert close_names("rasberry", targets()) == ["raspberry-pi-4", "raspberry-pi-5"]
    assert close_names("Aura_Hard", ZOO) == ["aura-hard"]
    assert close_names("abacus", targets()) == []
    assert close_names("x", ZOO) == []
    commands = [*OLD, *(name for verbs in SECTIONS.values() for name in verbs)]
    for verb in commands:
        assert close_names(verb, commands)[0] == verb
