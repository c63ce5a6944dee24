"""A bundle on another machine over ssh: installed whole or not at all, and said in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, TargetRef, write_bundle
from stategate.contract.errors import InstallError
from tests.bench.ssh_board import Board, board


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of ssh a shell of this machine, with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    script = tmp_path / "line"
    script.write_text('#!/bin/sh\nshift\nPATH=/usr/bin:/bin exec sh -c "$*"\n')
    script.chmod(0o755)
    return str(script)


def test_a_machine_without_stategate_gets_a_remedy_that_installs_it(
    tiny_bundle: Path, shell: str
) -> None:
    with pytest.raises(InstallError, match=r"no stategate on robot(.|\n)*--wheels"):
        stategate.deploy("robot", tiny_bundle, ssh=shell)


def test_a_bundle_for_another_cpu_is_refused_before_it_is_copied(
    tiny_bundle: Path, tmp_path: Path, shell: str
) -> None:
    bundle = Bundle.open(tiny_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, target=TargetRef("some-board", "riscv64"))
    content = {file.path: bundle.read(file) for file in bundle.manifest.all_files}
    other = write_bundle(tmp_path / "other", manifest, content)
    with pytest.raises(InstallError, match=r"riscv64 \(some-board\)"):
        stategate.deploy("robot", other, ssh=shell)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("host", "options", "words"),
    [
        ("-oProxyCommand=touch /tmp/x", [], "the host has no name"),
        ("robot", ["--ssh", "no-such-ssh -p 1"], "apt-get install openssh-client"),
        ("robot", ["--ssh", "false"], "no answer that a shell would give"),
        ("robot", ["--ssh", "sh -c 'exit 255'"], "goes on from what is there"),
        ("robot", ["--ssh", "true"], "no answer that a shell would give"),
    ],
)
def test_what_is_no_line_to_a_machine_is_refused_in_words(
    host: str, options: list[str], words: str, tiny_bundle: Path
) -> None:
    result = CliRunner().invoke(main, ["deploy", *options, "--", host, str(tiny_bundle)])
    assert result.exit_code in (1, 2)
    assert words in f"{result.output}{result.exception}"


@pytest.fixture(scope="module")
def robot() -> Iterator[Board]:
    with board() as machine:
        yield machine


@pytest.mark.slow
def test_a_bundle_is_installed_verified_and_measured_on_a_machine_of_an_ordinary_user(
    native_bundle: Path, robot: Board, tmp_path: Path
) -> None:
    words = ["deploy", robot.host, str(native_bundle), "--ssh", robot.ssh, "--into", "whole"]
    more = ["--accept-code", "--out", str(tmp_path / "report"), "--json"]
    result = CliRunner().invoke(main, words + more)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["slot"], record["phase"], record["was_installed"]) == ("a", "steady", False)
    assert record["bench"]["subjects"][0]["engine"].startswith("native")
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"deploy.json", "bench.json", "bench.html", "bench.md"}
    assert Bundle.open(robot.home / "whole" / "a").digest == Bundle.open(native_bundle).digest
    assert not list((robot.home / ".cache" / "stategate").iterdir())
    again = stategate.deploy(robot.host, native_bundle, ssh=robot.ssh, into="whole", measure=False)
    assert again.was_installed and again.slot == "a"


CALLS = ("look", "status", "mkdir", "rsync --version", "rsync", "install", "verify", "rm")
DROPS = [
    *(("line", call, 0.001) for call in range(len(CALLS))),
    ("line", 5, 0.6),
    *(("board", 5, after) for after in (0.3, 0.6, 0.8, 1.0, 1.2)),
    ("board", 6, 0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "call", "after"), DROPS)
def test_nothing_is_half_done_where_the_line_drops_or_the_other_side_is_killed(
    what: str,
    call: int,
    after: float,
    tiny_bundle: Path,
    update: Path,
    robot: Board,
) -> None:
    into = f"drop-{what}-{call}-{after}"
    stategate.deploy(robot.host, tiny_bundle, ssh=robot.ssh, into=into, measure=False)
    before = Bundle.open(tiny_bundle).digest
    ssh = robot.dropping(call, after, what)
    try:
        stategate.deploy(robot.host, update, ssh=ssh, into=into, measure=False)
    except InstallError as problem:
        assert "goes on" in str(problem) or "failed at" in str(problem)
    folder = robot.home / into
    status = stategate.Installation.status(folder)
    assert status.runs == "a" and status.slots[0].digest == before
    assert status.slots[0].problem is None and status.phase in ("steady", "unpacking", "staged")
    for _ in range(20):  # what a dropped line left running there ends by itself
        try:
            done = stategate.deploy(robot.host, update, ssh=robot.ssh, into=into, measure=False)
            break
        except InstallError as problem:
            assert "installing" in str(problem)
    assert (done.slot, done.phase) == ("b", "staged")
    assert Bundle.open(folder / "b").digest == Bundle.open(update).digest
    assert not list((robot.home / ".cache" / "stategate").iterdir())
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def update(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle that may replace the tiny one."""
    copy = tmp_path_factory.mktemp("update") / "bundle"
    shutil.copytree(tiny_bundle, copy)
    return stategate.release(copy, 2).path
