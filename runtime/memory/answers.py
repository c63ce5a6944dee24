"""What a session answers in place of a step that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from stategate.contract import TensorSpec
from stategate.runtime.base.buffers import Slot
from stategate.runtime.memory.banks import Memory


class Answers:
    """The last good outputs of this episode; before there are any, the declared safe ones."""

    def __init__(self, outputs: Sequence[Slot], specs: Sequence[TensorSpec], memory: Memory):
        """Keep nothing yet."""
        self._memory = memory
        self._last = tuple((slot.array, slot.array.copy()) for slot in outputs)
        self._step_of_last = 0
        safe = [spec.safe_array() for spec in specs]
        self._safe = [
            (slot.array, array)
            for slot, array in zip(outputs, safe, strict=True)
            if array is not None
        ]

    def keep(self) -> None:
        """Copy the outputs of the step that was committed last, unless they are kept already."""
        committed = self._memory.committed
        if self._step_of_last != committed:
            for shown, value in self._last:
                np.copyto(value, shown)
            self._step_of_last = committed

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Answer afterwards as before: what a step of a branch gave was never asked for."""
        self.keep()
        before = [value.copy() for _, value in self._last]
        try:
            yield
        finally:
            for (_, value), good in zip(self._last, before, strict=True):
                np.copyto(value, good)
            self._step_of_last = self._memory.committed

    def give(self) -> bool:
        """Put an answer where the caller looks; False where there is none and nothing was done."""
        answer = self._last if self._step_of_last > self._memory.began else self._safe
        for shown, value in answer:
            np.copyto(shown, value)
        return bool(answer)
