"""Running a bundle's prologue: once for an episode, in ONNX Runtime, whatever engine steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stategate.contract import Bundle
from stategate.contract.errors import StepInputError
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.feeds import fits, misfit, not_finite


class PrologueRunner:
    """Loads the graph for the first episode that is begun with it, and keeps it.

    Attributes:
        prologue: What it takes and fills; None where the bundle has none.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self.prologue = bundle, bundle.manifest.prologue
        self._run: Callable[[Mapping[str, Array]], list[Array]] | None = None

    def not_begun(self, owner: str) -> StepInputError:
        """The error for a step from states that nobody gave."""
        inputs = ", ".join(f"{t.name}=..." for t in self.prologue.inputs) if self.prologue else ""
        return StepInputError(
            "no episode was begun, and this bundle begins one with its prologue",
            expected="begin() before the first step, and after each reset",
            remedy=f"{owner}{inputs}), or load_state()",
        )

    def states(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The states that it fills, by name."""
        prologue, graph = self.prologue, self._bundle.manifest.graph_of("prologue")
        if prologue is None or graph is None:
            raise StepInputError(
                "this bundle has no prologue",
                remedy="reset() begins an episode, and load_state(states) one from given states",
            )
        expected = {tensor.name: tensor for tensor in prologue.inputs}
        if set(inputs) != set(expected):
            raise StepInputError(
                "the prologue takes other inputs",
                found=", ".join(sorted(inputs)) or "no inputs",
                expected=", ".join(expected),
            )
        for name, value in inputs.items():
            tensor = expected[name]
            place = np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
            if not fits(value, place):
                raise misfit(f"input {name!r} of the prologue", value, place)
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise not_finite(f"input {name!r} of the prologue", value.reshape(-1))
        if self._run is None:
            from stategate.runtime.engines.ort import run_once  # not every engine needs this one

            self._run = run_once(self._bundle, graph, list(prologue.outputs.values()))
        return dict(zip(prologue.outputs, self._run(inputs), strict=True))
