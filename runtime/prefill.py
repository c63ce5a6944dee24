"""Recorded history taken in by the chunk: several steps in one call of a graph made for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from stategate.contract import Budget, Bundle, TensorSpec
from stategate.contract.chunks import VALID, chunked
from stategate.contract.errors import EngineError, MemoryBudgetError
from stategate.contract.manifest import GraphRef
from stategate.runtime.base.buffers import Array, Buffers, Slot
from stategate.runtime.base.ledger import Counters
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.engines.engine import open_engine
from stategate.runtime.engines.feeds import Feeds
from stategate.runtime.keep.keeper import Keeper
from stategate.runtime.memory.banks import Memory


class Chunks:
    """Runs a bundle's chunk graph on the memory of a session.

    Attributes:
        steps: Steps of a whole chunk.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphRef, buffers: Buffers, memory: Memory, budget: Budget
    ) -> None:
        """Load the graph, beside that of the step."""
        self.steps = graph.steps
        spec = chunked(bundle.manifest.step, graph.steps)
        gates = tuple(TensorSpec(g.name, g.shape) for g in spec.gates)
        tensors = (*spec.inputs, *spec.outputs, *gates)
        needed = rss_bytes() + (bundle.path / graph.file.path).stat().st_size
        needed += sum(tensor.nbytes for tensor in tensors)
        limit = budget.peak_resident_bytes
        if limit is not None and needed > limit:
            raise MemoryBudgetError(
                "the chunk graph does not fit the budget of peak_resident_bytes",
                found=f"{needed} bytes planned",
                expected=f"at most {limit} bytes",
                remedy="take the history step by step, with step()",
            )

        def slots(specs: tuple[TensorSpec, ...]) -> tuple[Slot, ...]:
            return tuple(Slot.allocate(t.name, t.shape, t.dtype) for t in specs)

        own = replace(
            buffers, inputs=slots(spec.inputs), outputs=slots(spec.outputs), gates=slots(gates)
        )
        self._inputs = {slot.name: slot.array for slot in own.inputs}
        self._outputs = {slot.name: slot for slot in own.outputs}
        self._gates = {slot.name: slot for slot in own.gates}
        pairs = ((buffers.outputs, own.outputs), (buffers.gates, own.gates))
        self._shown = [
            (a.array, b.array)
            for shown, computed in pairs
            for a, b in zip(shown, computed, strict=True)
        ]
        self._memory = memory
        self._engine = open_engine(bundle, own, graph)

    def take(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Up to `steps` steps at once.

        Args:
            inputs: By name ``(steps, 1, ...)``, checked.
            outputs: Where the answers go, by name ``(steps, 1, ...)``.
        """
        count = len(next(iter(inputs.values())))
        for name, array in inputs.items():
            self._inputs[name][0, :count] = array[:, 0]
            self._inputs[name][0, count:] = 0
        self._inputs[VALID][0] = np.arange(self.steps) < count
        self._engine.run(self._memory.parity)
        for name, array in outputs.items():
            array[:, 0] = self._outputs[name].array[0, :count]
        self._memory.commit_chunk(self._outputs, self._gates, count)
        for shown, chunk in self._shown:  # what the session tells of its last step
            shown[0] = chunk[0, count - 1]

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


class Prefill:
    """Takes many steps, by the chunk where that comes to the same as step by step."""

    def __init__(
        self,
        bundle: Bundle,
        buffers: Buffers,
        memory: Memory,
        counters: Counters,
        budget: Budget,
        keeper: Keeper | None,
        by_step: bool,
    ) -> None:
        """Load nothing yet: the chunk graph is loaded by the first history.

        Args:
            bundle: What the session steps.
            buffers: Those of its steps.
            memory: Its memory.
            counters: Its counters.
            budget: Its limits.
            keeper: Of its snapshots.
            by_step: Whether something in the session must see every single step.
        """
        self._bundle, self._buffers, self._memory = bundle, buffers, memory
        self._counters, self._budget, self.keeper = counters, budget, keeper
        # A chunk's engine would not see what the step's engine keeps on a device.
        self.by_step = by_step or memory.on_device
        self._chunks: Chunks | None = None

    def take(
        self, inputs: Mapping[str, Array], step: Callable[..., Mapping[str, Array]]
    ) -> dict[str, Array]:
        """All steps of a history; see `stategate.runtime.Session.prefill`.

        Args:
            inputs: By name ``(steps, *shape)``.
            step: The session's own; not kept, so that a dropped session is freed at once.
        """
        steps = Feeds(self._buffers.inputs).check_history(inputs)
        answers = {
            slot.name: np.empty((steps, *slot.array.shape), slot.array.dtype)
            for slot in self._buffers.outputs
        }
        graph = None if self.by_step else self._bundle.manifest.chunk_graph
        if graph is None:
            for t in range(steps):
                outputs = step(**{name: array[t, ...] for name, array in inputs.items()})
                for name, answer in answers.items():
                    answer[t] = outputs[name]
            return answers
        if self._chunks is None:
            self._chunks = Chunks(self._bundle, graph, self._buffers, self._memory, self._budget)
        for start in range(0, steps, graph.steps):
            part = slice(start, start + graph.steps)
            try:
                self._chunks.take(
                    {name: array[part] for name, array in inputs.items()},
                    {name: answer[part] for name, answer in answers.items()},
                )
            except EngineError:
                self._counters.faults += 1
                raise
            if self.keeper is not None:
                self.keeper.save_by_policy(raises=True)
        return answers

    def close(self) -> None:
        """Free the chunk graph's engine."""
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None
