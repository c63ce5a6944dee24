"""Files of states: the safetensors package reads what is written here, and the other way round."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from stategate.contract.errors import SnapshotDamagedError
from stategate.contract.state_file import decode_states, encode_states, load_states

DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
any_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, max_side=3))
)
names = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_characters="\x7f"))
names = names.filter(lambda name: name and name != "__metadata__" and name.isprintable())


@given(states=st.dictionaries(names, any_array, min_size=1, max_size=5))
def test_the_package_reads_what_is_written_and_what_it_writes_is_read(
    states: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("states")
    (folder / "own.safetensors").write_bytes(encode_states(states, {"by": "us"}))
    save_file(states, folder / "package.safetensors", {"by": "them"})
    own, facts = load_states(folder / "own.safetensors")
    assert facts == {"by": "us"} and list(own) == list(states)
    package, facts = load_states(folder / "package.safetensors")
    assert facts == {"by": "them"}
    for read in (own, package, load_file(folder / "own.safetensors")):
        assert set(read) == set(states)
        for name, array in states.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            assert read[name].tobytes() == array.tobytes()


def test_damaged_bytes_are_refused_or_hold_no_more_than_they_are() -> None:
    states = {"h": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.ones((1, 1), np.int64)}
    raw = encode_states(states, {"stategate.memory_sha256": "0" * 64})
    draw = random.Random(7)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(raw[: draw.choice([len(raw), draw.randint(0, len(raw))])])
        for _ in range(draw.randint(0, 4)):
            if damaged:
                at = draw.randrange(min(len(damaged), draw.choice([8, 260, len(raw)])))
                damaged[at] = draw.randrange(256)
        try:
            read, _ = decode_states(bytes(damaged))
            assert sum(array.nbytes for array in read.values()) <= len(damaged)
        except (ValueError, msgspec.MsgspecError):
            refused += 1
    assert refused > 1000


def header_of(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        header_of(h=F32),
        header_of(h=F32) + bytes(5),
        header_of(h=F32, g=F32) + bytes(4),
        header_of(h=F32 | {"data_offsets": [4, 0]}) + bytes(4),
        header_of(h=F32 | {"data_offsets": [-4, 0]}) + bytes(4),
        header_of(h=F32 | {"shape": [-1, -1]}) + bytes(4),
        header_of(h=F32 | {"shape": [1 << 62, 1 << 62]}) + bytes(4),
        header_of(h=F32 | {"dtype": "BF16", "shape": [2]}) + bytes(4),
        header_of(h=F32 | {"dtype": "F4"}) + bytes(4),
        header_of(h=F32 | {"more": 1}) + bytes(4),
        header_of(h={"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}) + b"\x00\x01\x02\x00",
        header_of(__metadata__={"n": 7}, h=F32) + bytes(4),
        header_of(h=F32).replace(b'"h"', b'"\x01"') + bytes(4),
        (40).to_bytes(8, "little") + b"[" * 40,
    ],
)
def test_what_breaks_the_format_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    path.write_bytes(raw)
    with pytest.raises(SnapshotDamagedError):
        load_states(path)


def test_a_folder_a_missing_and_a_large_file_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 34)
    for path in (tmp_path, tmp_path / "none", large):
        with pytest.raises(SnapshotDamagedError, match=path.name):
            load_states(path)
