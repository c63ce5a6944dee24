"""Opening a bundle: whom it serves, and what it needs, before anything is allocated."""

from __future__ import annotations

from pathlib import Path

from stategate.contract import Budget, Bundle
from stategate.contract.errors import BundleError, MemoryBudgetError, SpecError
from stategate.runtime.base.buffers import Buffers, initial_states
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.base.resident import engine_bytes
from stategate.runtime.engines.engine import EngineChoice


def open_single(path: str | Path | Bundle) -> Bundle:
    """Open a bundle that serves one session."""
    bundle = Bundle.open(path)
    if bundle.manifest.sessions != 1:
        raise BundleError(
            "this is a pool bundle, which a single session cannot step",
            found=f"{bundle.manifest.sessions} sessions in each step of {bundle.path}",
            expected="a bundle for one session",
            remedy="open it with stategate.runtime.Pool.open(path), or export the model again "
            "without --sessions",
        )
    return bundle


def planned_bytes(bundle: Bundle) -> int:
    """What opening a bundle allocates for sure.

    Three copies of the states (two banks and the initial values), inputs, outputs, and the graphs
    of a step with what one hands to the other.
    The engine's own workspace comes on top; see `stategate.runtime.base.resident`.
    """
    step = bundle.manifest.step
    # Inputs and outputs of the graph hold each state once: that is both banks.
    tensors = (*step.graph_inputs().values(), *step.graph_outputs().values())
    way = bundle.manifest.way
    roles = way.roles if way else ("step",)
    bound = sum(tensor.nbytes for tensor in tensors) + (way.payload_bytes if way else 0)
    files = [g.file.path for g in bundle.manifest.graphs if g.role in roles]
    return bound + step.state_bytes + sum((bundle.path / f).stat().st_size for f in files)


def check_memory(bundle: Bundle, budget: Budget, engine: EngineChoice = "auto") -> None:
    """Refuse a bundle that cannot fit, with what its engine added where it was made."""
    added = max(planned_bytes(bundle), engine_bytes(bundle.manifest, engine))
    needs = {
        "state_bytes": (bundle.manifest.state_bytes, budget.state_bytes),
        "peak_resident_bytes": (rss_bytes() + added, budget.peak_resident_bytes),
    }
    for name, (needed, limit) in needs.items():
        warned = name == "peak_resident_bytes" and budget.on_resident == "warn"
        if limit is not None and needed > limit and not warned:
            raise MemoryBudgetError(
                f"the bundle does not fit its budget of {name}",
                found=f"{needed} bytes planned",
                expected=f"at most {limit} bytes",
                remedy="choose a smaller model, or give it more memory",
            )


def check_pool_budget(budget: Budget) -> None:
    """Refuse limits that a pool does not keep."""
    allowed = {"state_bytes", "peak_resident_bytes", "on_resident"}
    limits = {n for n in budget.__struct_fields__ if getattr(budget, n) is not None} - allowed
    if limits:
        raise SpecError(
            "a pool does not keep this budget, and will not pretend to",
            found=", ".join(sorted(limits)),
            expected="none but state_bytes and peak_resident_bytes",
            remedy="step it as single sessions, or export it without these limits",
        )


def allocate(bundle: Bundle) -> Buffers:
    """Every buffer of a bundle, states at their initial values."""
    try:
        return Buffers.allocate(bundle.manifest, initial_states(bundle))
    except MemoryError as problem:
        raise MemoryBudgetError(
            "the bundle does not fit this machine", found=f"{planned_bytes(bundle)} bytes"
        ) from problem
