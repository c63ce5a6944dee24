"""A bundle on another machine over ssh: installed whole or not at all, and said in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import stategate
from stategate.bench.fleet.host import connected
from stategate.cli.main import main
from stategate.contract import Bundle, write_bundle
from stategate.contract.errors import InstallError, TrustError
from stategate.contract.manifest import TargetRef
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


ANSWERS = """#!/bin/sh
echo "$*" >> "$HOME/calls"
case "$*" in
--version) echo stategate, version 0.2.0;;
"install status"*) cat "$HOME/status" || exit 1;;
"install bundle"*) printf '{"phase": "steady", "runs": "a", "slots":
[{"name": "a", "digest": "%s", "problem": null}]}' "$(cat "$HOME/digest")" | tee "$HOME/status";;
verify*) printf '{"digest": "%s", "replay": {"steps": 3, "max_output_error": 0}}' \\
"$(cat "$HOME/verified")";;
esac
"""


@pytest.fixture
def answering(tiny_bundle: Path, tmp_path: Path, shell: str) -> str:
    """A shell that greets whoever logs in, on a machine whose stategate answers at once."""
    home, digest = tmp_path / "home", Bundle.open(tiny_bundle).digest
    command = home / ".local" / "bin" / "stategate"
    command.parent.mkdir(parents=True)
    command.write_text(ANSWERS)
    command.chmod(0o755)
    for name in ("digest", "verified"):
        (home / name).write_text(digest)
    line = Path(shell)
    line.write_text(line.read_text().replace("shift\n", "shift\necho 'machine=m68k'; echo '{'\n"))
    return shell


def test_what_the_other_shell_prints_at_login_is_no_answer(
    tiny_bundle: Path, tmp_path: Path, answering: str
) -> None:
    done = stategate.deploy("robot", tiny_bundle, ssh=answering, into="~/here", measure=False)
    assert (done.slot, done.machine != "m68k") == ("a", True)
    assert done.folder == f"{tmp_path}/home/here"
    assert not list((tmp_path / "home" / ".cache" / "stategate").iterdir())


def test_native_code_is_accepted_where_the_bundle_was_installed_already(
    tiny_bundle: Path, tmp_path: Path, answering: str
) -> None:
    for accept in (False, True):
        done = stategate.deploy(
            "robot", tiny_bundle, ssh=answering, measure=False, accept_code=accept
        )
    assert done.was_installed
    assert (
        f"device trust {tmp_path}/home/stategate/a --json"
        in (tmp_path / "home" / "calls").read_text().splitlines()
    )


def test_a_bundle_that_somebody_else_put_there_meanwhile_is_not_called_verified(
    tiny_bundle: Path, tmp_path: Path, answering: str
) -> None:
    (tmp_path / "home" / "verified").write_text("0" * 64)
    with pytest.raises(InstallError, match="another bundle lies in"):
        stategate.deploy("robot", tiny_bundle, ssh=answering, measure=False)


def test_a_private_key_and_a_policy_of_files_are_not_copied(
    tiny_bundle: Path, tmp_path: Path, answering: str
) -> None:
    key = tmp_path / "author.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ==\n-----END PRIVATE KEY-----\n")
    with pytest.raises(TrustError, match="private key"):
        stategate.deploy("robot", tiny_bundle, ssh=answering, trust=key)
    (tmp_path / "author.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    key.write_text('version = 1\nkeys = ["author.pub"]\n')
    with pytest.raises(InstallError, match="a policy names other files"):
        stategate.deploy("robot", tiny_bundle, ssh=answering, trust=key)
    assert not (tmp_path / "home" / ".cache").exists()


@pytest.mark.parametrize("into", ["", " ", "~", "~other/robot", "a\nb"])
def test_a_folder_that_shells_read_in_several_ways_is_refused(into: str, tiny_bundle: Path) -> None:
    with pytest.raises(InstallError, match="every shell reads alike"):
        stategate.deploy("robot", tiny_bundle, into=into)


def test_files_that_are_there_are_not_sent_again_and_half_files_are(
    tmp_path: Path, shell: str
) -> None:
    source, copy = tmp_path / "a b'c", tmp_path / "home" / 'to "$HOME"'
    (source / "deep").mkdir(parents=True)
    for name in ("whole", "half", "deep/new"):
        (source / name).write_text(f"{name} and more")
    copy.mkdir()
    (copy / "whole").write_text("whole and more")
    os.utime(copy / "whole", (1, 1))
    (copy / "half").write_text("half")
    with connected("robot", shell) as line:
        line.send(source, str(copy))
    assert {p.name: p.read_text() for p in copy.rglob("*") if p.is_file()} == {
        name: f"{path}{name} and more"
        for path, name in (("", "whole"), ("", "half"), ("deep/", "new"))
    }
    assert (copy / "whole").stat().st_mtime == 1


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


CALLS = ("look", "status", "sha256sum", "tar", "install", "verify", "rm")
DROPS = [
    *(("line", call, 0.001) for call in range(len(CALLS))),
    ("line", 4, 0.6),
    *(("board", 4, after) for after in (0.3, 0.6, 0.8, 1.0, 1.2)),
    ("board", 5, 0.5),
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
