"""Snapshot folders in which somebody put what no session writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract import Bundle
from stategate.contract.errors import SnapshotError
from stategate.runtime import Session
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import SLOTS

OPEN = np.array([[1.0, 0.3, -0.2, 0.5]], dtype=np.float32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def saved(bundle: Path, folder: Path, times: int = 2) -> Path:
    with Session.open(bundle, snapshots=folder) as session:
        for _ in range(times):
            session.step(x=OPEN)
            session.save()
    return folder


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 2**30)


@pytest.mark.case("E11")
@pytest.mark.parametrize("plant", [sparse, os.mkfifo, Path.mkdir], ids=["sparse", "pipe", "folder"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.filterwarnings("ignore::stategate.contract.errors.SnapshotWarning")
def test_a_slot_that_is_no_file_neither_hangs_nor_fills_the_memory(
    tiny_bundle: Path, tmp_path: Path, plant: Callable[[Path], None], slots: int
) -> None:
    folder = saved(tiny_bundle, tmp_path / "snapshots")
    for slot in SLOTS[:slots]:
        (folder / slot).unlink()
        plant(folder / slot)
    restored = None
    with suppress(SnapshotError), Session.open(tiny_bundle, snapshots=folder) as session:
        restored = session.restore()
    assert slots == 1 or not restored


@pytest.mark.case("E12")
def test_links_where_a_save_stages_its_slot_are_not_followed(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = saved(tiny_bundle, tmp_path / "snapshots")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for slot in SLOTS:
        for hidden in (f".{slot}.new", f".{slot}.staged"):
            (folder / hidden).symlink_to(victim)
    with Session.open(tiny_bundle, snapshots=folder) as session:
        session.restore()
        session.step(x=OPEN)
        session.save()
    assert victim.read_text() == "precious"
    assert not any((folder / slot).is_symlink() for slot in SLOTS)


@pytest.fixture(scope="module")
def snapshot(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, bytes]:
    folder = saved(tiny_bundle, tmp_path_factory.mktemp("snapshots"), times=1)
    return Codec(Bundle.open(tiny_bundle).manifest), (folder / SLOTS[0]).read_bytes()


@pytest.mark.case("E11")
@given(st.integers(0, 400), st.binary(min_size=1, max_size=20))
def test_a_snapshot_with_any_bytes_and_a_right_checksum_is_read_or_refused(
    snapshot: tuple[Codec, bytes], at: int, noise: bytes
) -> None:
    codec, raw = snapshot
    body = bytearray(raw[:-32])
    body[at : at + len(noise)] = noise
    with suppress(SnapshotError):
        codec.decode(bytes(body) + hashlib.sha256(body).digest(), "slot")


@pytest.mark.case("E11")
@given(st.data())
def test_a_snapshot_whose_header_says_anything_is_read_or_refused(
    snapshot: tuple[Codec, bytes], data: st.DataObject
) -> None:
    codec, raw = snapshot
    size = int.from_bytes(raw[12:16], "little")
    header = json.loads(raw[24 : 24 + size])
    part = data.draw(st.sampled_from([header, header["ledger"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
    text = json.dumps(header).encode().ljust(size)
    body = raw[:12] + len(text).to_bytes(4, "little") + raw[16:24] + text + raw[24 + size : -32]
    with suppress(SnapshotError):
        codec.decode(body + hashlib.sha256(body).digest(), "slot")
