from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from stategate.contract import Bundle, sha256, write_bundle
from stategate.contract.errors import BundleError, DigestError, ManifestError, StategateError

Copier = Callable[[Path], Path]


def content(bundle: Bundle) -> dict[str, bytes]:
    return {f.path: bundle.read(f) for f in bundle.manifest.all_files}


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_any_flipped_bit_of_any_file_is_found(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    chance = random.Random(3)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        everywhere = range(len(raw)) if len(raw) < 200 else chance.sample(range(len(raw)), 60)
        for position in everywhere:
            damaged = bytearray(raw)
            damaged[position] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises((BundleError, ManifestError)):
                Bundle.open(copy)
        path.write_bytes(raw)
    Bundle.open(copy)


@pytest.mark.parametrize("name", ["graphs/step.onnx", "golden.npz"])
def test_a_truncated_file_is_found(tiny_bundle: Path, copy_of: Copier, name: str) -> None:
    path = copy_of(tiny_bundle) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DigestError, match=name):
        Bundle.open(path.parents[name.count("/")])


def test_a_missing_file_is_named(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    (copy / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"golden\.npz"):
        Bundle.open(copy)


def test_a_manifest_without_its_seal_is_refused(tiny_bundle: Path, copy_of: Copier) -> None:
    copy = copy_of(tiny_bundle)
    (copy / "manifest.sha256").unlink()
    with pytest.raises(DigestError, match="altered or missing"):
        Bundle.open(copy)


def test_a_link_that_leaves_the_bundle_is_refused(
    tiny_bundle: Path, copy_of: Copier, tmp_path: Path
) -> None:
    copy = copy_of(tiny_bundle)
    outside = tmp_path / "outside"
    (copy / "golden.npz").rename(outside)
    (copy / "golden.npz").symlink_to(outside)
    with pytest.raises(DigestError, match="outside"):
        Bundle.open(copy)


def test_a_folder_that_is_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="stategate export"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is no folder"):
        Bundle.open(tmp_path / "nowhere")


def test_something_else_is_never_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match="in the way"):
        write_bundle(tmp_path, bundle.manifest, content(bundle))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_only_looks_like_a_bundle_is_never_overwritten(
    tiny_bundle: Path, copy_of: Copier, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    foreign = tmp_path / "extension"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "a browser extension"}')
    copy = copy_of(tiny_bundle)
    (copy / "notes.txt").write_text("mine")
    for path in (foreign, copy):
        with pytest.raises(BundleError, match="in the way"):
            write_bundle(path, bundle.manifest, content(bundle))
    assert (foreign / "manifest.json").exists() and (copy / "notes.txt").exists()


def test_the_folder_one_stands_in_is_not_swapped_away(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="that you are in"):
        write_bundle(Path(), bundle.manifest, content(bundle))


def test_a_link_is_followed_and_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_bundle(tmp_path / "link", bundle.manifest, content(bundle))
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(tmp_path / "real").digest == bundle.digest
    assert leftovers(tmp_path) == []


def test_writers_at_the_same_path_never_leave_half_a_bundle(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    files = content(bundle)
    for attempt in range(20):
        path = tmp_path / str(attempt)
        with ThreadPoolExecutor(3) as pool:
            writers = [pool.submit(write_bundle, path, bundle.manifest, files) for _ in range(3)]
        errors = [e for e in (w.exception() for w in writers) if e is not None]
        assert not [e for e in errors if not isinstance(e, StategateError)], errors
        assert Bundle.open(path).digest == bundle.digest
    assert leftovers(tmp_path) == []


def test_a_manifest_must_list_exactly_the_files(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match=r"extra\.bin"):
        write_bundle(tmp_path / "b", bundle.manifest, {**content(bundle), "extra.bin": b""})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("survives", [0, 1, 2, 4])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(
    tiny_bundle: Path, copy_of: Copier, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    copy = copy_of(tiny_bundle)
    bundle = Bundle.open(copy)
    newer = msgspec.structs.replace(bundle.manifest, created="later")
    left = iter([True] * survives)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        write_bundle(copy, newer, content(bundle))
    monkeypatch.undo()
    assert Bundle.open(copy).digest == bundle.digest
    assert leftovers(copy.parent) == []


@pytest.mark.parametrize("atomic", [True, False])
def test_a_replaced_bundle_is_the_new_one(
    tiny_bundle: Path, copy_of: Copier, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    if not atomic:
        monkeypatch.setattr("stategate.contract.durable._exchange", lambda a, b: False)
    copy = copy_of(tiny_bundle)
    bundle = Bundle.open(copy)
    newer = msgspec.structs.replace(bundle.manifest, created="later")
    write_bundle(copy, newer, content(bundle))
    assert Bundle.open(copy).manifest.created == "later"
    assert leftovers(copy.parent) == []


WRITER = """
import sys, msgspec
from stategate.contract import Bundle, sha256, write_bundle
bundle = Bundle.open(sys.argv[1])
files = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
print("ready", flush=True)
while True:
    for created in ("a", "b"):
        write_bundle(sys.argv[2], msgspec.structs.replace(bundle.manifest, created=created), files)
"""


@pytest.mark.slow
@pytest.mark.corners("over an older bundle")
@pytest.mark.parametrize("start", ["from nothing", "over an older bundle"])
def test_a_writer_killed_at_any_moment_leaves_a_whole_bundle_or_none(
    tiny_bundle: Path, tmp_path: Path, start: str
) -> None:
    bundle = Bundle.open(tiny_bundle)
    chance = random.Random(5)
    whole = 0
    for attempt in range(15):
        path = tmp_path / str(attempt) / "b"
        if start != "from nothing":
            write_bundle(path, bundle.manifest, content(bundle))
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, tiny_bundle, path], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            # Half of the writers die in their first write, wherever they are; the others later.
            while attempt % 2 and not path.exists():
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.01))
            child.send_signal(signal.SIGKILL)
        if start != "from nothing" or path.exists():
            Bundle.open(path)
            whole += 1
    assert whole > 5


@pytest.mark.case("E13")
def test_a_bundle_that_is_being_replaced_opens_as_the_old_or_the_new_one(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    copy = copy_of(tiny_bundle)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tiny_bundle, copy], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        seen = {Bundle.open(copy).manifest.created for _ in range(600)}
        child.kill()
    assert {"a", "b"} <= seen


@pytest.mark.case("E13")
def test_a_bundle_that_is_damaged_and_stays_so_is_read_once(
    tiny_bundle: Path, copy_of: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(tiny_bundle)
    (copy / "golden.npz").write_bytes(b"altered")
    reads: list[str] = []
    real = Bundle._open_unchecked
    monkeypatch.setattr(
        Bundle, "_open_unchecked", lambda path: (reads.append(str(path)), real(path))[1]
    )
    with pytest.raises(DigestError):
        Bundle.open(copy)
    assert len(reads) == 1


def test_every_error_of_a_bundle_is_one_of_stategate() -> None:
    assert issubclass(BundleError, StategateError)
    assert issubclass(DigestError, BundleError)


def test_a_bundle_of_another_schema_version_can_be_exported_again(
    tiny_bundle: Path, copy_of: Copier
) -> None:
    """Its own error says to export again; so that must not be refused."""
    copy = copy_of(tiny_bundle)
    bundle = Bundle.open(copy)
    record = json.loads((copy / "manifest.json").read_text())
    raw = json.dumps(record | {"schema_version": 99, "field_of_the_future": 1}).encode()
    (copy / "manifest.json").write_bytes(raw)
    (copy / "manifest.sha256").write_text(f"{sha256(raw)}  manifest.json\n")
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="notes.txt"):
        write_bundle(copy, bundle.manifest, content(Bundle.open(tiny_bundle)))
    (copy / "notes.txt").unlink()
    write_bundle(copy, bundle.manifest, content(Bundle.open(tiny_bundle)))
    assert Bundle.open(copy).digest == bundle.digest
