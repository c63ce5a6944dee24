from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import stategate
from lab.reproducible import CASES, MODEL, build, differences, digests, places
from stategate.contract import Bundle


def made_in(folder: Path, monkeypatch: pytest.MonkeyPatch, zone: str) -> Bundle:
    (folder / "scratch").mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TMPDIR", str(folder / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    return stategate.make("model.py:Latch", "bundle", steps=40)


def test_a_bundle_has_the_same_bytes_at_another_path_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one = made_in(tmp_path / "one", monkeypatch, "UTC")
    other = made_in(tmp_path / "another folder" / "below", monkeypatch, "Pacific/Kiritimati")
    assert one.manifest.created == "2023-11-14T22:13:20Z"
    assert digests(one.path) == digests(other.path)
    assert one.manifest.way is not None and "estimated" in one.manifest.way.why
    content = b"".join(path.read_bytes() for path in one.path.rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in content
    assert os.fsencode(Path(stategate.__file__).parents[1]) not in content


def test_what_differs_is_named_by_its_place() -> None:
    one, other = {"a": {"b": 1, "c": [2]}, "d": 3}, {"a": {"b": 1, "c": [4]}}
    assert list(differences(one, other)) == ["a.c: [2] and [4]", "d: 3 and None"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["a file of the user's", "an adopted file"])
def test_another_user_in_another_locale_builds_the_same_bytes(case: str) -> None:
    # Not below pytest's folder, which is closed to other users.
    with TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        one, other = (build(place, Path(scratch), case, CASES[case]) for place in places())
        assert digests(one) == digests(other)
        native = Bundle.open(one).manifest.native
        assert native is None or (native.library and not native.step_us)
