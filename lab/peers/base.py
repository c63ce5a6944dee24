"""What the peers share: the weights out of the bundle's graph, and the shape of a subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError
from stategate.runtime.base.buffers import Array

_PREFIX = "model."


class Always:
    """The log of a step that writes always, or whose writes are not known."""

    def note(self, i: int) -> None:
        """Nothing to note."""

    def read(self, count: int) -> Array:
        """All ones."""
        return np.ones(count, np.uint8)


class Peer:
    """A subject that counts nothing: what a user would write around another runtime.

    Attributes:
        engine: Name and version.
    """

    engine: str

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step; carries its own state."""
        raise NotImplementedError

    def writes(self, timed: int) -> Always:
        """Not counted."""
        return Always()

    def ledger(self) -> dict[str, Any]:
        """Not counted."""
        return {}


def fixed(bundle: Bundle) -> dict[str, Array]:
    """Thresholds and other inputs that stay, by name."""
    step = bundle.manifest.step
    return {spec.name: np.full(spec.shape, spec.value, spec.dtype) for spec in step.fixed_inputs}


def states(bundle: Bundle) -> dict[str, Array]:
    """States of AURA-Mem and of other models that begin with nothing.

    Raises:
        MeasurementError: The model begins with something else than zeros.
    """
    for spec in bundle.manifest.states:
        if spec.init_file is not None:
            raise MeasurementError(
                f"state {spec.name!r} does not begin at zero, which peers expect"
            )
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in bundle.manifest.states}


def aura_weights(bundle: Bundle) -> dict[str, Array]:
    """Parameters of an AURA-Mem bundle by their names in the model, and ``c2``, folded at export.

    Raises:
        MeasurementError: The bundle is of another model.
    """
    import onnx
    from onnx import numpy_helper

    if bundle.manifest.model.family != "aura":
        raise MeasurementError(
            "this peer is written by hand for AURA-Mem alone",
            found=bundle.manifest.model.family,
        )
    graph = onnx.load_from_string(bundle.read(bundle.manifest.step_graph.file)).graph
    arrays = {node.name: numpy_helper.to_array(node) for node in graph.initializer}
    scalars = [float(array) for array in arrays.values() if array.ndim == 0]
    # beta is divided by 1 + c2, and c2 is used by itself: no other pair of constants is one apart.
    (c2,) = {low for low in scalars for high in scalars if low > 0 and abs(high - 1 - low) < 3e-7}
    weights = {n.removeprefix(_PREFIX): a for n, a in arrays.items() if n.startswith(_PREFIX)}
    return weights | {"c2": np.array(c2, np.float32)}
