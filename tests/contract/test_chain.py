"""The chain of hashes: NumPy and C agree bit for bit, and what differs shows."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stategate.common.cpu import isa_of_this_machine
from stategate.contract.chain import START, chained, mix

C = Path(__file__).parents[2] / "export" / "c"
LENGTHS = [0, 1, 3, 4, 5, 8, 12, 100, 1016, 1020, 1023, 1024, 1025, 2048, 2052, 70001]
FLAGS = [["-O0"], ["-O3", "-march=native"]]
if isa_of_this_machine() in ("x86-64-v3", "x86-64-v4"):
    FLAGS.append(["-O2", "-march=x86-64-v3"])
PROGRAM = """#include "stategate_chain.h"
uint64_t chained(uint64_t chain, const void *data, size_t bytes)
{
    return stategate_chained(chain, data, bytes);
}
"""


def word_by_word(chain: int, data: bytes) -> int:
    """The definition once more, in integers of Python."""
    for at in range(0, len(data), 1024):
        block = data[at : at + 1024]
        padded = block + bytes(-len(block) % 8)
        words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
        half, total = len(words) // 2, 0
        for i in range(half):
            key = mix((i + 1) * 0x9E3779B97F4A7C15 % 2**64)
            total += (words[i] + key) % 2**32 * ((words[half + i] + (key >> 32)) % 2**32)
        chain = mix(chain ^ ((total + len(block)) % 2**64))
    return chain


def test_the_chain_in_numpy_is_the_one_of_its_definition() -> None:
    data = np.random.default_rng(1).bytes(max(LENGTHS))
    for length in LENGTHS:
        assert chained(77, data[:length]) == word_by_word(77, data[:length])


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_the_chain_in_c_is_that_of_numpy(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "chain.c").write_text(PROGRAM)
    words = ["cc", *flags, "-Wall", "-Wextra", "-Werror", f"-I{C}", "-shared", "-fPIC"]
    subprocess.run([*words, "chain.c", "-o", "chain.so"], cwd=tmp_path, check=True)
    in_c = ctypes.CDLL(str(tmp_path / "chain.so")).chained
    in_c.restype, in_c.argtypes = (
        ctypes.c_uint64,
        [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t],
    )
    data = np.random.default_rng(2).bytes(max(LENGTHS))
    for length in LENGTHS:
        assert in_c(START, data[:length], length) == chained(START, data[:length])
    assert in_c(5, data[3:], 2000) == chained(5, data[3:2003])  # and wherever it lies


def test_each_bit_each_length_and_each_place_shows() -> None:
    data = np.random.default_rng(3).bytes(1400)
    chains = {chained(START, data)}
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        chains.add(chained(START, bytes(changed)))
    chains |= {chained(START, bytes(length)) for length in range(3000)}  # zeros are no silence
    assert len(chains) == 1 + 8 * len(data) + 3000
    swapped = data[:512] + data[1024:] + data[512:1024]
    assert chained(START, swapped) != chained(START, data)


def test_zeros_of_two_signs_and_payloads_of_nan_are_other_bits() -> None:
    numbers = [np.array([x], np.float32) for x in (0.0, -0.0, np.nan)]
    numbers.append(np.array([0x7FC00001], np.uint32).view(np.float32))
    assert len({chained(START, n) for n in numbers}) == 4


def test_arrays_are_taken_in_their_order_whatever_their_strides_and_endianness() -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(5, dtype=np.int64)
    chain = chained(chained(START, a), b)
    assert chain == chained(chained(START, a.tobytes()), b.tobytes())
    assert chain == chained(chained(START, np.asfortranarray(a)), b.astype(">i8"))
    assert chain != chained(chained(START, b), a)
