"""Parts of torch that begin anew in every call: recurrent ones without a hidden state, windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stategate.contract.errors import UndeclaredStateError


class Begins:
    """Notes, while it is on, which recurrent parts are called without a hidden state.

    Attributes:
        steps: Steps of time that each of them took in one call, by its name in the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.steps: dict[str, int] = {}
        self._model = model

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the calls of a while."""
        handles = [
            part.register_forward_pre_hook(_Hook(self.steps, name), with_kwargs=True)
            for name, part in self._model.named_modules()
            if isinstance(part, (nn.RNNBase, nn.RNNCellBase))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Refuse what takes one step of time and begins it from zeros."""
        parts = dict(self._model.named_modules())
        for name, steps in self.steps.items():
            part, short = parts[name], name.rpartition("lifted.")[2]
            if steps != 1:
                continue
            both_ways = getattr(part, "bidirectional", False)
            results = "self.hidden" if isinstance(part, nn.RNNCellBase) else "y, self.hidden"
            raise UndeclaredStateError(
                f"a recurrent part forgets everything after each step: {short}",
                found=f"{type(part).__name__} called without a hidden state, on one step of time"
                + (", in both directions" if both_ways else ""),
                expected="the hidden state of the step before",
                remedy="a layer that reads the future has no step; train it in one direction"
                if both_ways
                else f"keep it: self.hidden = None in __init__, and {results} = "
                f'self.{short}(x, self.hidden) in forward; then lift(..., states=["hidden"]). Or '
                'take it as an argument and return it: lift(..., hidden={"hidden": None})',
            )

    def notes(self) -> tuple[str, ...]:
        """One sentence for each part whose memory lies inside of a window of inputs."""
        return tuple(
            f"{name} begins anew in every step and reads {steps} steps of time: hand over the "
            "whole window in every step, or keep its hidden state and hand over one"
            for name, steps in self.steps.items()
            if steps > 1
        )


class _Hook:
    """Notes a call of one part; an object, so that no closure is taken for memory."""

    def __init__(self, steps: dict[str, int], name: str) -> None:
        self._steps, self._name = steps, name

    def __call__(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[1] if len(args) > 1 else kwargs.get("hx")
        x = args[0] if args else kwargs.get("input")
        if hidden is None and isinstance(x, Tensor):
            is_cell = isinstance(part, nn.RNNCellBase)
            batched_first = not is_cell and part.batch_first and x.dim() == 3
            self._steps[self._name] = 1 if is_cell else x.shape[1 if batched_first else 0]
