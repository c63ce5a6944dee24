from __future__ import annotations

import ast
import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.run import run
from stategate.contract.durable import (
    check_writable,
    make_folder,
    move_into_place,
    whole_file,
    write_whole,
)
from stategate.contract.errors import ResultError
from stategate.runtime import Session
from stategate.runtime.episodes.recorder import Recorder

ROOT = Path(__file__).parents[2]
ROOMS = ("bench", "calibration", "contract", "export", "models", "runtime", "targets")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of the disk, in order: ("sync", path) and ("rename", new path)."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        seen.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def watched_replace(old: str | Path, new: str | Path) -> None:
        seen.append(("rename", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return seen


def check_order(calls: list[tuple[str, str]], path: Path) -> None:
    """The content is on the disk before its name, and the name before the call returns."""
    renamed = calls.index(("rename", str(path)))
    assert calls[renamed - 1][0] == "sync"
    assert Path(calls[renamed - 1][1]).name.startswith(f".{path.name}")
    assert calls[renamed + 1] == ("sync", str(path.parent))


@pytest.mark.case("E16")
def test_a_ledger_is_on_the_disk_when_the_run_ends(
    calls: list[tuple[str, str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "run"
    done = CliRunner().invoke(run, [str(tiny_bundle), "--steps", "3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    check_order(calls, out / "ledger.json")
    # The folders that were made on the way must not be lost either.
    assert ("sync", str(tmp_path)) in calls and ("sync", str(tmp_path / "new")) in calls


@pytest.mark.case("E16")
def test_a_recording_is_on_the_disk_when_its_block_is_counted(
    calls: list[tuple[str, str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    with Session.open(tiny_bundle) as session, Recorder(session, tmp_path, steps=2) as robot:
        for _ in range(2):
            robot.step(x=np.ones((1, 4), np.float32))
    check_order(calls, next(tmp_path.glob("*.npz")))


def paths_renamed(source: Path) -> list[int]:
    """Lines that rename a file or folder: ``a.rename(b)``, ``a.replace(b)``, ``os.replace(a, b)``.

    `str.replace` takes two arguments, and `msgspec.structs.replace` takes keywords.
    """
    lines: list[int] = []
    text = source.read_text()
    if not any(word in text for word in ("rename", "replace", "move")):
        return lines  # which spares most files their parser
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
        one = len(node.args) == 1 and not node.keywords
        if (node.func.attr in ("rename", "replace") and (one or of_os)) or (
            node.func.attr == "move" and of_os
        ):
            lines.append(node.lineno)
    return lines


@pytest.mark.case("E16")
def test_nothing_is_put_in_the_place_of_something_else_by_another_mechanism() -> None:
    allowed = {
        "contract/durable.py",
        "runtime/keep/store.py",  # puts a damaged file aside, within the folder that it then syncs
    }
    found = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if paths_renamed(path)
    }
    assert found <= allowed


def test_an_exception_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_staged_file_is_not_followed(tmp_path: Path) -> None:
    victim, staged = tmp_path / "victim", tmp_path / ".file.new"
    victim.write_bytes(b"precious")
    staged.symlink_to(victim)
    write_whole(tmp_path / "file", b"new", staged)
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_written_file_has_the_mode_that_the_user_asked_the_system_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_syncs_no_folders_is_no_error_and_a_failing_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EINVAL:
        write_whole(tmp_path / "file", b"new")
    else:
        with pytest.raises(OSError, match="Input/output"):
            write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_is_moved_and_its_name_is_on_the_disk(
    calls: list[tuple[str, str]], tmp_path: Path, old: bool
) -> None:
    staged, path = tmp_path / "staged", tmp_path / "folder"
    make_folder(staged)
    (staged / "new").touch()
    if old:
        make_folder(path)
        (path / "old").touch()
    calls.clear()
    move_into_place(staged, path)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert calls == [("sync", str(tmp_path))]


def test_a_pipe_is_not_replaced_by_a_file_before_or_after_the_work(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ResultError, match="a device, a pipe or a socket"):
            check_writable(path)
        with pytest.raises(FileExistsError, match="a device, a pipe or a socket"):
            write_whole(path, b"answer")
    assert link.is_symlink() and stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [link, pipe]
