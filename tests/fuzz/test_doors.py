"""Every file of the corpora is read rightly or refused in words; `make fuzz` makes more of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.attack.around import Broken, quiet
from lab.attack.corpus import seeds
from lab.attack.doors import DOORS, Door, knock
from lab.attack.places import PLACE
from stategate.contract.claims import declared
from stategate.contract.errors import SpecError, StateFault

CORPUS = sorted((PLACE / "corpus").glob("*/*"))


@pytest.mark.parametrize("file", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_file_of_a_corpus_is_read_rightly_or_refused_in_words(file: Path) -> None:
    with quiet():
        answer = knock(file.parent.name, file.read_bytes())
    kind = file.name.partition("-")[0]
    assert answer in {"wrong": ("refused",), "odd": ("read", "refused")}.get(kind, ("read",))


def test_the_right_files_are_those_that_the_script_writes(tmp_path: Path) -> None:
    names = {f"{door}/{name}" for door, files in seeds(tmp_path).items() for name in files}
    committed = {f"{path.parent.name}/{path.name}" for path in CORPUS}
    assert names == {name for name in committed if "/wrong-" not in name and "/odd-" not in name}
    assert set(DOORS) == {path.parent.name for path in CORPUS}


def test_a_door_that_does_what_none_may_do_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def writes(raw: bytes, folder: Path) -> None:
        (tmp_path / "outside").write_bytes(raw)

    def says_nothing(raw: bytes, folder: Path) -> None:
        raise StateFault("no")

    def fills(raw: bytes, folder: Path) -> None:
        raise StateFault("no", found="much") from MemoryError()

    def writes_next_door(raw: bytes, folder: Path) -> None:
        Path(f"{folder}1").write_bytes(raw)
        Path(f"{folder}1").unlink()

    for read, problem in (
        (writes, "outside"),
        (writes_next_door, "outside"),
        (says_nothing, "without"),
        (fills, "memory"),
    ):
        monkeypatch.setitem(DOORS, "npy", Door(read))
        with pytest.raises(Broken, match=problem):
            knock("npy", b"x")


def test_a_contract_in_a_file_that_names_a_file_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(str(path)))
    with pytest.raises(SpecError, match=r"a text in one\.json"):
        declared(path)
