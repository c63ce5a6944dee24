"""The write rule: a hard gate is open where its value is above its threshold.

A step whose gate is open nowhere leaves every byte that the gate guards alone. The same rule for
torch is `stategate.models.step.opens`; `export/c/interface.py` writes it as C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def opens(gate: Any, threshold: Any, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Which elements of a gate are open.

    Args:
        gate: Values of the gate, float32.
        threshold: A number, or an array that broadcasts against the gate.
        out: Where the answer goes; None makes a new array of the gate's shape.
    """
    # A graph and C compare with a float32; a float64 would decide otherwise between two of them.
    is_open: NDArray[np.bool_] = np.greater(gate, np.asarray(threshold, np.float32), out=out)
    return is_open


def opens_number(gate: float, threshold: float) -> bool:
    """The same of one Python number, without the cost of NumPy.

    Args:
        gate: Value of the gate.
        threshold: Already rounded to float32.
    """
    return gate > threshold
