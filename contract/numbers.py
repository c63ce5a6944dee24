"""Numbers that a caller gives: the right kind, in their bounds, and Python's own.

A record keeps Python's numbers only, and NumPy's are what a program often has.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import SupportsFloat, SupportsIndex

from stategate.contract.errors import SpecError


def whole(name: str, value: SupportsIndex, least: int = 1) -> int:
    """A whole number of at least this size."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise SpecError(f"{name} must be a whole number of at least {least}", found=repr(value))
    return number


def positive(name: str, value: SupportsFloat, most: float) -> None:
    """Refuse what is no number above 0, or one above the most that it can be."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and 0 < float(value) <= most):
        raise SpecError(
            f"{name} must be positive, and at most {most:g}",
            found=f"{value!r}, a value of type {type(value).__name__}",
        )


def bounded(name: str, value: SupportsFloat, most: float = math.inf) -> float:
    """A number from 0 to the most that it can be, and not NaN."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= most:
        span = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise SpecError(f"{name} must be a number {span}", found=repr(value))
    return number
