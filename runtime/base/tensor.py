"""A tensor in numbers that fit a screen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stategate.runtime.base.buffers import Array

_MOST_VALUES = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in numbers that fit a screen."""

    shape: tuple[int, ...]
    dtype: str
    values: list[float]  # all of it, flat; empty where that is more than 64
    least: float  # its smallest element
    mean: float  # of all elements
    largest: float  # its largest element
    rms: float  # root of the mean square

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """Look at an array."""
        wide = array.astype(np.float64).reshape(-1)
        values = wide.tolist() if wide.size <= _MOST_VALUES else []
        if wide.size == 0:
            return cls(array.shape, str(array.dtype), values, 0.0, 0.0, 0.0, 0.0)
        statistics = (wide.min(), wide.mean(), wide.max(), np.sqrt(np.mean(wide * wide)))
        return cls(array.shape, str(array.dtype), values, *map(float, statistics))
