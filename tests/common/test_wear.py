from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.common.flash import (
    Storage,
    bytes_per_day,
    endurance_bytes,
    host_bytes_per_snapshot,
    years_at,
)
from stategate.common.wear_counters import DeviceWear, block_device, read_wear
from stategate.contract.errors import SpecError

KIB, MIB = 1024, 1024**2
HEADER = 4096  # what the published table below adds to each state


def lifetime_years(storage: Storage, snapshot_bytes: int, per_second: float) -> float:
    return years_at(storage, bytes_per_day(storage, snapshot_bytes, per_second))


def rated(tbw: float, **fields: object) -> Storage:
    return Storage("rated", "test", endurance_bytes=round(tbw * 1e12), **fields)


def cells(gigabytes: float, cycles: float, amplification: float, **fields: object) -> Storage:
    return Storage(
        "cells",
        "test",
        capacity_bytes=round(gigabytes * 1e9),
        pe_cycles=cycles,
        write_amplification=amplification,
        **fields,
    )


def test_four_gigabytes_of_3000_cycles_at_80_kilobytes_a_second_last_4_75_years() -> None:
    # The worked example of electronics.stackexchange.com/q/218914, which counts bytes alone.
    storage = cells(4, 3000, 1, block_bytes=1, metadata_bytes=0)
    assert lifetime_years(storage, 80_000, 1) == pytest.approx(4.75, abs=0.005)


EMMC_16, EMMC_64 = cells(16, 3000, 3), cells(64, 3000, 3)


@pytest.mark.parametrize(
    ("state_bytes", "storage", "per_second", "years", "digits"),
    [
        (16 * KIB, EMMC_16, 30, 0.41, 2),
        (16 * KIB, EMMC_16, 30 * 0.05, 8.3, 1),
        (16 * KIB, EMMC_16, 1, 12.4, 1),
        (16 * KIB, EMMC_16, 1 / 10, 124, 0),
        (16 * KIB, EMMC_16, 1 / 60, 743, 0),
        (16 * KIB, cells(32, 500, 10), 1, 1.2, 1),
        (256 * KIB, EMMC_16, 30, 0.06, 2),
        (256 * KIB, EMMC_16, 30 * 0.05, 1.2, 1),
        (256 * KIB, EMMC_16, 1, 1.8, 1),
        (256 * KIB, EMMC_16, 1 / 10, 18, 0),
        (256 * KIB, EMMC_16, 1 / 60, 106, 0),
        (256 * KIB, EMMC_64, 1, 7.1, 1),
        (256 * KIB, rated(117), 1, 12.9, 1),
        (256 * KIB, rated(117), 1 / 60, 776, 0),
        (256 * KIB, rated(150), 30, 0.55, 2),
        (256 * KIB, rated(150), 1 / 10, 166, 0),
        (2 * MIB, EMMC_16, 30, 0.008, 3),
        (2 * MIB, rated(150), 1 / 60, 134, 0),
        (32 * MIB, EMMC_64, 1 / 10, 0.6, 1),
        (32 * MIB, rated(600), 1, 0.57, 2),
    ],
)
def test_lifetimes_agree_with_the_published_table(
    state_bytes: int, storage: Storage, per_second: float, years: float, digits: int
) -> None:
    assert round(lifetime_years(storage, state_bytes + HEADER, per_second), digits) == years


def test_endurance_is_capacity_times_cycles_over_amplification() -> None:
    assert endurance_bytes(EMMC_16) == 16e12
    assert endurance_bytes(rated(117)) == 117e12


def test_a_snapshot_takes_whole_blocks_and_its_metadata() -> None:
    storage = rated(1, metadata_bytes=100)
    sizes = [host_bytes_per_snapshot(storage, size) for size in (0, 1, 4096, 4097)]
    assert sizes == [100, 4196, 4196, 8292]


def test_what_is_never_written_lasts_for_ever() -> None:
    assert lifetime_years(EMMC_16, 4096, 0) == math.inf
    free = rated(1, metadata_bytes=0)
    assert lifetime_years(free, 0, 30) == math.inf


ENDURANCE = st.integers(10**9, 10**16)
STORAGE = st.builds(
    lambda bytes_, block, metadata: Storage(
        "any", "test", endurance_bytes=bytes_, block_bytes=block, metadata_bytes=metadata
    ),
    ENDURANCE,
    st.sampled_from([1, 512, 4096, 16384]),
    st.integers(0, 10**6),
)
SNAPSHOT = st.integers(1, 10**9)
PER_SECOND = st.floats(1e-6, 1e4)


@given(STORAGE, SNAPSHOT, PER_SECOND, st.integers(0, 10**6), st.floats(1, 10))
def test_larger_or_more_snapshots_never_last_longer(
    storage: Storage, snapshot_bytes: int, per_second: float, more: int, factor: float
) -> None:
    years = lifetime_years(storage, snapshot_bytes, per_second)
    assert lifetime_years(storage, snapshot_bytes + more, per_second) <= years
    assert lifetime_years(storage, snapshot_bytes, per_second * factor) <= years


@given(st.floats(0.1, 1e4), st.floats(1, 1e5), st.floats(1, 100), st.floats(1, 10))
def test_amplification_never_lengthens_and_cycles_never_shorten_a_life(
    gigabytes: float, cycles: float, amplification: float, factor: float
) -> None:
    base = endurance_bytes(cells(gigabytes, cycles, amplification))
    assert endurance_bytes(cells(gigabytes, cycles, amplification * factor)) <= base
    assert endurance_bytes(cells(gigabytes, cycles * factor, amplification)) >= base


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_rates_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(SpecError, match="snapshots_per_second"):
        lifetime_years(EMMC_16, 1, value)
    with pytest.raises(SpecError, match="snapshot_bytes"):
        host_bytes_per_snapshot(EMMC_16, -1)


STAT = "1 2 3 4 5 6 {sectors} 8 9 10 11 12 13 14 15 16 17\n"


def fake_sys(root: Path, held: Path, disk: str, partition: str | None, files: dict) -> None:
    """A tree like the kernel's, in which ``held`` lies on a disk or on a partition of it."""
    folder = root / "sys/devices/platform/host" / disk
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    lower = folder
    if partition is not None:
        lower = folder / partition
        lower.mkdir(parents=True)
        (lower / "partition").write_text("1\n")
        (lower / "stat").write_text(STAT.format(sectors=1))
    number = held.stat().st_dev
    link = root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(Path(os.path.relpath(lower, link.parent)))


def emmc(root: Path, life_time: str, reserve: str = "0x01\n") -> DeviceWear:
    fake_sys(
        root,
        root,
        "mmcblk0",
        "mmcblk0p1",
        {
            "stat": STAT.format(sectors=2000),
            "device/type": "MMC\n",
            "device/life_time": life_time,
            "device/pre_eol_info": reserve,
        },
    )
    return read_wear(root, root)


def test_an_emmc_tells_its_life_and_the_whole_device_is_counted(tmp_path: Path) -> None:
    found = emmc(tmp_path, "0x02 0x03\n", "0x02\n")
    assert found == DeviceWear("mmcblk0", "emmc", 2000 * 512, 30, "warning")
    assert not found.estimate


@pytest.mark.parametrize(
    ("life_time", "percent"),
    [
        ("0x01 0x00\n", 10),
        ("0x00 0x0A\n", 100),
        ("0x0B 0x01\n", 110),
        ("0x00 0x00\n", None),
        ("0xff 0x01\n", None),
        ("unknown\n", None),
        ("", None),
    ],
)
def test_the_worse_kind_of_cell_decides_and_undefined_is_none(
    tmp_path: Path, life_time: str, percent: int | None
) -> None:
    found = emmc(tmp_path, life_time)
    assert found.life_used_percent == percent
    assert found.estimate == (percent is None)


def test_an_sd_card_shows_what_the_host_wrote_and_nothing_else(tmp_path: Path) -> None:
    files = {"stat": STAT.format(sectors=7), "device/type": "SD\n"}
    fake_sys(tmp_path, tmp_path, "mmcblk1", None, files)
    found = read_wear(tmp_path, tmp_path)
    assert found == DeviceWear("mmcblk1", "sd", 7 * 512)
    assert found.estimate


def test_an_nvme_drive_does_not_tell_its_wear_without_privileges(tmp_path: Path) -> None:
    files = {"stat": STAT.format(sectors=9), "device/model": "a drive\n"}
    fake_sys(tmp_path, tmp_path, "nvme0n1", "nvme0n1p2", files)
    assert read_wear(tmp_path, tmp_path) == DeviceWear("nvme0n1", "nvme", 9 * 512)


def test_a_device_without_counters_is_named_and_no_more(tmp_path: Path) -> None:
    fake_sys(tmp_path, tmp_path, "vda", None, {"stat": "1 2 3\n"})
    assert read_wear(tmp_path, tmp_path) == DeviceWear("vda", "other")


def test_counters_that_are_no_text_are_none(tmp_path: Path) -> None:
    fake_sys(tmp_path, tmp_path, "vda", None, {"stat": ""})
    (block_device(tmp_path, tmp_path) / "stat").write_bytes(b"\xff\xfe")
    assert read_wear(tmp_path, tmp_path).host_bytes_since_boot is None


def test_where_nothing_is_there_everything_is_none(tmp_path: Path) -> None:
    nothing = DeviceWear()
    assert read_wear(tmp_path, tmp_path) == nothing
    assert read_wear(tmp_path / "gone") == nothing
    assert nothing.estimate


def test_this_machine_can_be_asked_without_an_error(tmp_path: Path) -> None:
    found = read_wear(tmp_path)
    assert (found.device is None) == (found.kind is None)
