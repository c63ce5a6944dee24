"""Whatever ends a command becomes one sentence and an exit code that is no answer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from stategate.common.console import progress
from stategate.common.ending import CommandGroup, stop_request
from stategate.contract.durable import write_whole

STATEGATE = Path(sys.executable).with_name("stategate")


@click.group(cls=CommandGroup)
def group() -> None: ...


@group.command()
@click.argument("number", type=int)
def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


@group.command()
@click.argument("number", type=int)
def works(number: int) -> None:
    with progress(10, "working", "half is kept"):
        os.kill(os.getpid(), number)
        signal.pause()


@group.command()
@click.option("--twice", is_flag=True)
def finishes_its_step(twice: bool) -> None:
    with stop_request() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        click.echo("the step is finished")
        if twice:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    if stop:
        raise stop.stopped("1 step")


@group.command()
def asks() -> None:
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.alarm(1)
    click.confirm("Is that right?")


@group.command()
@click.argument("path", type=click.Path(path_type=Path))
def writes(path: Path) -> None:
    write_whole(path, b"content")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


@pytest.mark.case("D9")
@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_ends_a_command_with_128_and_its_number_in_one_line(
    number: int, code: int
) -> None:
    ended = invoke("kills-itself", number)
    assert ended.exit_code == code
    assert ended.output == f"stopped by {signal.Signals(number).name}\n"


def test_handlers_are_as_before_once_a_command_has_ended() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    invoke("kills-itself", 15)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        seen = []

        @group.command("looks")
        def looks() -> None:
            seen.append(signal.getsignal(signal.SIGHUP))

        assert invoke("looks").exit_code == 0
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.case("A10")
def test_what_is_left_of_interrupted_work_is_said() -> None:
    ended = invoke("works", 15)
    assert ended.exit_code == 143
    assert ended.output.splitlines() == ["working", "stopped by SIGTERM: half is kept"]


@pytest.mark.case("A10")
def test_work_between_steps_notes_the_first_signal_and_ends_at_the_second() -> None:
    ended = invoke("finishes-its-step")
    assert ended.exit_code == 143
    assert ended.output.splitlines() == ["the step is finished", "stopped by SIGTERM: 1 step"]
    ended = invoke("finishes-its-step", "--twice")
    assert ended.exit_code == 130
    assert ended.output.splitlines() == ["the step is finished", "stopped by SIGINT"]


@pytest.mark.case("D9")
def test_an_interrupt_at_a_question_is_an_interrupt_and_no_answer() -> None:
    read, write = os.pipe()  # a question that nobody answers
    code = "from tests.common.test_ending import group\ngroup(['asks'])"
    done = subprocess.run([sys.executable, "-c", code], stdin=read, capture_output=True, text=True)
    os.close(read), os.close(write)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines()[-1] == "stopped by SIGINT"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    text = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True)


@pytest.mark.case("D9")
@pytest.mark.parametrize("arguments", ["targets", "--help", "export --help"])
def test_a_reader_that_has_enough_ends_a_command_quietly(arguments: str) -> None:
    done = shell(f"{STATEGATE} {arguments} | true")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.case("D9")
@pytest.mark.parametrize("arguments", ["targets --json", "--help"])
def test_output_that_cannot_be_written_is_said_once_with_a_remedy(arguments: str) -> None:
    done = shell(f"{STATEGATE} {arguments} > /dev/full")
    assert done.returncode == 2
    said, remedy = done.stderr.splitlines()
    assert said == "OSError: what is printed: No space left on device"
    assert "make room" in remedy


@pytest.mark.case("D9")
def test_a_full_disk_names_the_file_and_a_remedy_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    ended = invoke("writes", tmp_path / "result.json")
    assert ended.exit_code == 2
    assert f"{tmp_path / 'result.json'}: No space left on device" in ended.output
    assert "what to do: make room" in ended.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("D9")
def test_a_bug_shows_its_traceback_and_is_no_answer_either() -> None:
    @group.command("divides")
    def divides() -> None:
        _ = 1 / 0

    ended = invoke("divides")
    assert ended.exit_code == 70
    assert "in divides" in ended.output and "ZeroDivisionError" in ended.output
