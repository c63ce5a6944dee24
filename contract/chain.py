"""A chain of hashes: 64 bits that stand for all the bytes that were taken in, in their order.

Two runs with the same chain had the same bits; two that part stay apart, so that one comparison at
the end covers every step. It tells mistakes and not intentions: whoever wants to can make other
bytes with the same chain. For a difference that nobody chose, the odds that a block hides it are at
most 1 in 2**32 (NH of UMAC, RFC 4418), and it has to be hidden in every step that shows it.

This is the reference in NumPy; ``export/c/stategate_chain.h`` is the same in C, bit for bit.

A block is up to `BLOCK` bytes. As 32-bit little-endian words, filled up with zeros to an even
number, its first half ``a`` and second half ``b`` give ``sum((a + KEYS_A) * (b + KEYS_B))`` mod
2**64. So no order of the sum matters, and any width of vectors gives the same. Then the chain
becomes ``mix(chain ^ (sum + bytes of the block))``, which loses nothing of what it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

START = 0
BLOCK = 1024
_HALF = BLOCK // 8  # words of half a block
_MASK = (1 << 64) - 1


def mix(z: int) -> int:
    """Every bit of a 64-bit number into every other: the end of splitmix64, a bijection."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


# splitmix64 at the positions 1, 2, 3, ...: the low half is added to a word of a, the high to its b.
_DRAWN = [mix(i * 0x9E3779B97F4A7C15 & _MASK) for i in range(1, _HALF + 1)]
KEYS_A = np.array([k & 0xFFFFFFFF for k in _DRAWN], np.uint32)
KEYS_B = np.array([k >> 32 for k in _DRAWN], np.uint32)


def _sums(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> list[int]:
    """The sum of products of each block; ``a`` and ``b`` are ``(blocks, words of a half)``."""
    half = a.shape[1]
    keyed_a, keyed_b = (a + KEYS_A[:half]).astype(np.uint64), b + KEYS_B[:half]
    sums: list[int] = (keyed_a * keyed_b).sum(axis=1, dtype=np.uint64).tolist()
    return sums


def sums_of(data: NDArray[Any] | bytes) -> list[int]:
    """What each block of some bytes adds to a chain; see `chained`."""
    if isinstance(data, np.ndarray):
        data = data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    whole = len(data) // BLOCK
    words = np.frombuffer(data, "<u4", whole * 2 * _HALF).reshape(whole, 2, _HALF)
    sums = [total + BLOCK & _MASK for total in _sums(words[:, 0], words[:, 1])]
    rest = data[whole * BLOCK :]
    if rest:
        words = np.frombuffer(rest + bytes(-len(rest) % 8), "<u4").reshape(1, 2, -1)
        sums.append(_sums(words[:, 0], words[:, 1])[0] + len(rest) & _MASK)
    return sums


def chained_sums(chain: int, sums: Iterable[int]) -> int:
    """The chain after blocks with these sums."""
    for total in sums:
        chain = mix(chain ^ total)
    return chain


def chained(chain: int, data: NDArray[Any] | bytes) -> int:
    """The chain after some bytes; no bytes leave it as it is."""
    return chained_sums(chain, sums_of(data))
