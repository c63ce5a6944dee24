"""Policies that act in chunks: a network fills a queue of actions, and other steps take one out.

The queue becomes a state of fixed size behind a hard gate, which opens where the queue is empty,
and a count of what is left. A step with a closed gate needs nothing of the network, so a bundle in
two graphs leaves it out (see ``--split``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract import GateSpec, StateSpec, StepSpec
from stategate.contract.errors import TraceError
from stategate.models.lifting.first_step import Start
from stategate.models.lifting.lifted import Lifted, chosen
from stategate.models.lifting.slots import Own, form_of, holding, value_at
from stategate.models.lifting.trees import Value
from stategate.models.step import StepResult, Tensors

_GATE, _THRESHOLD = "refill", "refill_threshold"


def rows_of_queue(start: Start, name: str) -> list[Tensor]:
    """What the first step leaves in a queue from which each later step takes one, or nothing."""
    own, after = start.own[name], [values[name] for values in start.after]
    if not all(isinstance(value, (list, deque)) for value in (own, *after)) or own:
        return []
    n, *later = map(len, after)
    rows = list(after[0])
    alike = rows and all(isinstance(r, Tensor) and form_of(r) == form_of(rows[0]) for r in rows)
    shrinks = later == [n - 1, n - 2 if n > 1 else n]
    return rows if alike and shrinks and rows[0].dim() and rows[0].shape[0] == 1 else []


class Queued(Lifted):
    """A module with a queue of actions as a step; made by `lift`.

    Args:
        queue: Name of the queue.
        rows: What the first step leaves in it, each ``(1, ...)``.
    """

    def __init__(self, module: nn.Module, *parts: Any, queue: str, rows: Sequence[Tensor]) -> None:
        self._queue, self._count, self._rows = queue, f"{queue}.left", len(rows)
        self._empty = value_at(module, queue)
        self._zeros = torch.zeros_like(torch.stack(list(rows), 1))
        super().__init__(module, *parts)  # as `Lifted` takes them

    @property
    def attributes(self) -> list[str]:
        """The queue too."""
        return [*super().attributes, self._queue]

    def initial_states(self) -> dict[str, Tensor]:
        """As of any lifted module, and an empty queue."""
        count = torch.zeros(1, 1, dtype=torch.int64)
        return super().initial_states() | {self._queue: self._zeros, self._count: count}

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """Both kinds of step, of which the gate chooses one for each row."""
        count, queue = states[self._count], states[self._queue]
        gate = (count <= 0).to(torch.float32)
        is_open = gate > inputs[_THRESHOLD]
        filled, rows = self._with_queue([], inputs, states, self._rows)
        # The queue itself is not shifted: a quiet step writes none of it.
        places = (self._rows - count + torch.arange(self._rows)).clamp(0, self._rows - 1)
        places = places.reshape(*places.shape, *[1] * (queue.dim() - 2)).expand_as(queue)
        rest, _ = self._with_queue(
            list(queue.gather(1, places).unbind(1)), inputs, states, self._rows - 1
        )
        outputs, after = (
            {name: chosen(is_open, early[name], later[name]) for name in early}
            for early, later in zip(filled, rest, strict=True)
        )
        after[self._queue] = chosen(is_open, torch.stack(rows, 1), queue)
        after[self._count] = torch.where(is_open, self._rows, count - 1)
        return StepResult(outputs, after, {_GATE: gate})

    def _with_queue(
        self, rows: list[Tensor], inputs: Tensors, states: Tensors, length: int
    ) -> tuple[tuple[dict[str, Tensor], dict[str, Tensor]], list[Tensor]]:
        queue: Any = list(rows)
        if isinstance(self._empty, deque):
            queue = deque(rows, self._empty.maxlen)
        with holding(self.lifted, self._queue, queue):
            results = self._run(inputs, states)
            after = list(value_at(self.lifted, self._queue))
        if len(after) != length:
            raise TraceError(
                f"{self._queue!r} is no queue that is filled when it is empty, and then used up",
                found=f"{len(after)} rows after a step that began with {len(rows)}",
                expected=f"{length}",
                remedy="write the step with a gate, as in docs/tutorial/index.md",
            )
        return results, after

    def read(
        self, module: nn.Module, arguments: dict[str, Value], before: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States and gates of the module alone after a step: a full queue was filled by it."""
        states, _ = super().read(module, arguments, before)
        rows = list(value_at(module, self._queue))
        is_full = len(rows) == self._rows
        states[self._queue] = torch.stack(rows, 1) if is_full else before[self._queue]
        states[self._count] = torch.full((1, 1), len(rows))
        return states, {_GATE: torch.full((1, 1), float(is_full))}

    def put(self, module: nn.Module, states: Tensors) -> None:
        """Give a module these states; of the queue what is left."""
        super().put(module, states)
        count = int(states[self._count])
        rows = list(states[self._queue].unbind(1))[self._rows - count :]
        value_at(module, self._queue).extend(row.clone() for row in rows)

    def _spec_from(self, example_inputs: Tensors) -> StepSpec:
        special = [
            slot.name for slot in (*self.states, *self.arguments) if slot.own is not Own.SAME
        ]
        if special:
            raise TraceError(
                "a queue of actions, and a first step that is another for other reasons",
                found=f"{self._queue}, and {', '.join(special)}",
                remedy=f"set {special[0]!r} on the module before lift()",
            )
        threshold = torch.tensor([0.5])
        spec = super()._spec_from({**example_inputs, _THRESHOLD: threshold})
        gate = GateSpec(
            _GATE,
            "hard",
            (1, 1),
            0.5,
            _THRESHOLD,
            expected_write_rate=1 / (self._rows + 1),
            expected_from=f"a chunk of {self._rows + 1} actions",
        )
        return StepSpec(
            tuple(t for t in spec.inputs if t.name != _THRESHOLD),
            spec.outputs,
            tuple(
                StateSpec(s.name, s.shape, s.dtype, layout=s.layout, gate=_GATE)
                if s.name == self._queue
                else s
                for s in spec.states
            ),
            (gate,),
        )
