from __future__ import annotations

from pathlib import Path

import pytest

from stategate.common.flash import endurance_bytes
from stategate.contract.errors import TargetError
from stategate.targets import load_storage, storage_names, toml_tables


@pytest.mark.parametrize("name", storage_names())
def test_every_storage_loads_is_named_after_its_file_and_has_a_source(name: str) -> None:
    storage = load_storage(name)
    assert storage.name == name
    assert len(storage.source) > 20
    assert "metadata_bytes" in storage.assumed


@pytest.mark.parametrize(
    ("name", "terabytes"),
    [
        ("emmc-16gb", 16),
        ("emmc-32gb", 32),
        ("emmc-64gb", 64),
        ("sd-32gb-consumer", 1.6),
        ("sd-128gb-high-endurance", 117),
        ("nvme-256gb", 150),
        ("nvme-1tb", 600),
    ],
)
def test_endurance_is_what_the_source_says(name: str, terabytes: float) -> None:
    assert endurance_bytes(load_storage(name)) == pytest.approx(terabytes * 1e12)


def test_cycles_and_amplification_without_a_rating_are_labelled_as_assumed() -> None:
    for name in storage_names():
        storage = load_storage(name)
        by_cells = storage.endurance_bytes is None
        assert by_cells == ({"pe_cycles", "write_amplification"} <= set(storage.assumed))
        assert by_cells == storage.source.startswith("assumption")


def test_an_unknown_storage_offers_the_nearest() -> None:
    with pytest.raises(TargetError, match="nvme-256gb"):
        load_storage("nvme-255gb")
    with pytest.raises(TargetError, match="unknown storage"):
        load_storage("../profiles/cpu-x86-64")


def test_a_row_that_contradicts_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "bad.toml").write_text('name = "bad"\nsource = "test"\n')
    (tmp_path / "media" / "torn.toml").write_text("name = ")
    monkeypatch.setattr(toml_tables.resources, "files", lambda _: tmp_path)
    for name in ("bad", "torn"):
        with pytest.raises(TargetError, match=f"the storage {name} is broken"):
            load_storage(name)
