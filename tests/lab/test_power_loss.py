"""The power goes at any moment, on a disk that is made up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.block_device import Change, Disk, Recorder, Sync
from lab.ext4 import obstacle
from lab.power_loss import POLICIES, lose_power, lose_power_of_ext4

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="pathlib calls os by its module from Python 3.11 on"
)


def test_a_rename_that_was_not_synced_may_be_lost_and_what_was_synced_is_not() -> None:
    disk = Disk()
    disk.ask(Change(-1, 7, names=(None, "new")))
    for data in (b"4", b"word"):
        disk.ask(Change(7, -1 if data == b"4" else 0, data))
    disk.ask(Sync(7))
    assert disk.content() == {}
    disk.ask(Sync(-1))
    disk.ask(Change(-1, 7, names=("new", "slot")))
    assert disk.content() == {"new": b"word"}
    disk.apply(disk.cache)
    assert disk.content() == {"slot": b"word"}


def test_a_rename_before_the_content_is_synced_leaves_an_empty_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.recording():
        (tmp_path / "new").touch()
        (tmp_path / "new").write_bytes(b"word")
        (tmp_path / "new").rename(tmp_path / "slot")
    disk = Disk()
    disk.apply(event for event in recorder.events if isinstance(event, Change))
    assert disk.content() == {"slot": b""}


@pytest.mark.parametrize("name", POLICIES)
def test_every_cut_leaves_a_state_that_was_committed(tiny_bundle: Path, name: str) -> None:
    row = lose_power(tiny_bundle, POLICIES[name], steps=12, samples=50)
    assert row["in_order"]["cuts"] > 50
    for disk in ("in_order", "out_of_order"):
        assert row[disk]["lost"] == row[disk]["garbage"] == 0
    assert row["lying"]["garbage"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_so_does_every_cut_of_a_thousand_steps(aura_bundle: Path, name: str) -> None:
    row = lose_power(aura_bundle, POLICIES[name], steps=1000, samples=2000)
    for disk in ("in_order", "out_of_order"):
        assert row[disk]["lost"] == row[disk]["garbage"] == 0
    assert row["lying"]["garbage"] == 0
    # What a medium breaks that keeps its word about nothing is mostly found, and never believed.
    assert row["lying"]["said"] > 0


@pytest.mark.slow
@pytest.mark.skipif(bool(obstacle()), reason=obstacle())
@pytest.mark.parametrize("name", POLICIES)
def test_so_does_every_copy_of_a_disk_with_ext4(aura_bundle: Path, name: str) -> None:
    row = lose_power_of_ext4(aura_bundle, POLICIES[name], steps=200, every=1, flash_steps=1000)
    assert row["cuts"] > 20
    assert row["lost"] == row["garbage"] == 0
    if name == "journal":
        assert row["flash_bytes"] < 1.2 * 4096
