"""Files that are whole or not there, and what processes that were killed leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stategate.contract import Bundle, write_bundle
from stategate.contract.durable import write_whole
from stategate.contract.staging import scratch_folder, staged

# Stops in the middle of what it is told to do, says so, and waits to be killed.
STOPPED = """
import sys, time
from pathlib import Path
from stategate.contract import Bundle, durable, staging, write_bundle
def stop(*_):
    print("there", flush=True)
    time.sleep(60)
path = Path(sys.argv[2])
if sys.argv[1] == "file":
    Path.replace = stop
    durable.write_whole(path, b"half")
elif sys.argv[1] == "scratch":
    with staging.scratch_folder() as folder:
        (folder / "lib.c").write_text("int main;")
        stop()
else:
    bundle = Bundle.open(sys.argv[3])
    content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    import stategate.contract.bundle
    stategate.contract.bundle.move_into_place = stop
    write_bundle(path, bundle.manifest, content)
"""


def stopped(*arguments: object) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"there\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.case("E14")
def test_what_killed_writers_of_a_file_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    for _ in range(2):
        kill(stopped("file", tmp_path / "ledger.json"))
    assert len(names(tmp_path)) == 1
    write_whole(tmp_path / "ledger.json", b"whole")
    assert names(tmp_path) == ["ledger.json"]
    assert (tmp_path / "ledger.json").read_bytes() == b"whole"


@pytest.mark.case("E14")
def test_what_a_killed_export_left_is_gone_after_the_next_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        kill(stopped("bundle", tmp_path / "b", tiny_bundle))
    assert len(names(tmp_path)) == 1
    bundle = Bundle.open(tiny_bundle)
    content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    write_bundle(tmp_path / "b", bundle.manifest, content)
    assert names(tmp_path) == ["b"]


@pytest.mark.case("E14")
def test_temporary_folders_of_killed_processes_are_removed_and_those_of_living_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "stategate-scratch-notes").mkdir()  # somebody's own, whatever its name
    kill(stopped("scratch", "-"))
    living = stopped("scratch", "-")
    try:
        with scratch_folder() as mine:
            others = {path for path in tmp_path.iterdir() if path != mine}
            assert len(others) == 2
            assert any((path / "lib.c").exists() for path in others)
    finally:
        kill(living)
    with scratch_folder():
        pass
    assert names(tmp_path) == ["stategate-scratch-notes"]


@pytest.mark.case("E14")
def test_a_living_writer_of_the_same_file_is_waited_for(tmp_path: Path) -> None:
    living = stopped("file", tmp_path / "out.json")
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from stategate.contract.durable import write_whole\n"
            "print('there', flush=True); write_whole(Path(sys.argv[1]), b'second')",
            tmp_path / "out.json",
        ],
        stdout=subprocess.PIPE,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.3)
    assert (tmp_path / ".out.json.staged").read_bytes() == b"half"
    kill(living)
    assert waiting.wait(30) == 0
    waiting.stdout.close()
    assert (tmp_path / "out.json").read_bytes() == b"second"


@pytest.mark.case("E12")
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_what_is_planted_where_a_file_is_staged_is_not_followed(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    if kind != "dangling link":
        victim.write_text("precious")
    place = tmp_path / ".out.json.staged"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(victim)
    write_whole(tmp_path / "out.json", b"mine")
    assert (tmp_path / "out.json").read_bytes() == b"mine"
    assert not (tmp_path / "out.json").is_symlink()
    assert not victim.exists() or victim.read_text() == "precious"


@pytest.mark.case("E12")
def test_a_second_name_of_another_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.json.staged").hardlink_to(victim)
    write_whole(tmp_path / "out.json", b"mine")
    assert victim.read_text() == "precious"


def test_a_file_that_cannot_be_moved_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "x", b"1")
    assert names(tmp_path) == ["x"]


def test_a_file_system_without_locks_keeps_what_may_be_of_a_living_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / ".x.staged").write_text("of another writer")
    write_whole(tmp_path / "x", b"1")
    assert names(tmp_path) == [".x.staged", "x"]
    with scratch_folder() as folder:
        assert folder.is_dir()
    with staged(tmp_path / "y", folder=True) as place:
        place.rename(tmp_path / "y")
    assert names(tmp_path) == [".x.staged", "x", "y"]


@pytest.mark.slow
@pytest.mark.case("E14")
def test_writers_that_take_turns_at_one_place_never_remove_what_another_is_writing(
    tmp_path: Path,
) -> None:
    def write(number: int) -> None:
        for _ in range(300):
            write_whole(tmp_path / "x", b"%d" % number * 100)

    with ThreadPoolExecutor(4) as pool:
        for writer in [pool.submit(write, number) for number in range(4)]:
            writer.result()
    assert names(tmp_path) == ["x"]
    assert len(set((tmp_path / "x").read_bytes())) == 1
