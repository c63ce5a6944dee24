"""What a bundle needs, held against its budget before anything is allocated."""

from __future__ import annotations

from stategate.contract import Budget, Bundle
from stategate.contract.errors import MemoryBudgetError
from stategate.runtime.process import rss_bytes


def planned_bytes(bundle: Bundle) -> int:
    """What opening a bundle allocates for sure: two banks, inputs, outputs, and the graph.

    The engine's own workspace comes on top and is not known before it is loaded.
    """
    step = bundle.manifest.step
    # Inputs and outputs of the graph hold each state once: that is both banks.
    tensors = (*step.graph_inputs().values(), *step.graph_outputs().values())
    graph = bundle.path / bundle.manifest.graphs[0].file.path
    return sum(tensor.nbytes for tensor in tensors) + graph.stat().st_size


def check_memory(bundle: Bundle, budget: Budget) -> None:
    """Refuse a bundle that cannot fit.

    Raises:
        MemoryBudgetError: It needs more than the budget; nothing was allocated.
    """
    needs = {
        "state_bytes": (bundle.manifest.state_bytes, budget.state_bytes),
        "peak_resident_bytes": (rss_bytes() + planned_bytes(bundle), budget.peak_resident_bytes),
    }
    for name, (needed, limit) in needs.items():
        if limit is not None and needed > limit:
            raise MemoryBudgetError(
                f"the bundle does not fit its budget of {name}",
                found=f"{needed} bytes planned",
                expected=f"at most {limit} bytes",
                remedy="choose a smaller model, or give it more memory",
            )
