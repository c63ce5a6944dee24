"""Ship models whose memory never grows.

A model with a constant-size gated memory goes in, a verified bundle for one device comes out, and a
small runtime steps it for ever and counts every write:

    >>> import tempfile
    >>> import numpy as np
    >>> import torch
    >>> import stategate
    >>> from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
    >>> from stategate.models import StepResult

    >>> class Latch(torch.nn.Module):
    ...     '''Remembers the last input that is above 1.'''
    ...
    ...     def step_spec(self):
    ...         return StepSpec(
    ...             inputs=(TensorSpec("x", (1, 1)),),
    ...             outputs=(TensorSpec("y", (1, 1)),),
    ...             states=(StateSpec("h", (1, 1), gate="large"),),
    ...             gates=(GateSpec("large", "hard", (1, 1), 1.0, "limit"),),
    ...         )
    ...
    ...     def step(self, inputs, states):
    ...         x = inputs["x"]
    ...         h = torch.where(x > inputs["limit"], x, states["h"])
    ...         return StepResult({"y": h + 0.0}, {"h": h}, {"large": x})

    >>> bundle = stategate.make(Latch(), tempfile.mkdtemp() + "/latch")
    >>> bundle.receipt.steps, bundle.receipt.gate_flips
    (1000, 0)
    >>> stategate.verify(bundle).passed
    True
    >>> with stategate.Session.open(bundle.path) as session:
    ...     for x in (0.5, 3.0, 0.25, -1.0):
    ...         y = session.step(x=np.full((1, 1), x, np.float32))["y"]
    ...     print(y.item(), session.ledger.steps, session.ledger.writes)
    3.0 4 1

What is named here loads its room when it is used: importing this package costs NumPy and msgspec.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stategate.contract import Budget, Bundle
    from stategate.export.adopt import adopt
    from stategate.export.make import make
    from stategate.runtime import Pool, Session, SnapshotPolicy
    from stategate.runtime.check.verification import verify

__version__ = "0.2.0"
__all__ = [
    "Budget",
    "Bundle",
    "Pool",
    "Session",
    "SnapshotPolicy",
    "__version__",
    "adopt",
    "make",
    "verify",
]

# name: the module that has it, and the extra that this needs
_HOMES = {
    "Budget": ("contract", ""),
    "Bundle": ("contract", ""),
    "Pool": ("runtime", ""),
    "Session": ("runtime", ""),
    "SnapshotPolicy": ("runtime", ""),
    "adopt": ("export.adopt", "export"),
    "make": ("export.make", "export"),
    "verify": ("runtime.check.verification", ""),
}


def __getattr__(name: str) -> object:
    """A name of the front door; its room is imported when it is used.

    Raises:
        MissingDependencyError: A library of the room's extra is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as missing:
        if not extra or (missing.name or __name__).startswith(__name__):
            raise
        from stategate.contract.errors import MissingDependencyError

        raise MissingDependencyError(missing.name or "a library", extra) from missing


def __dir__() -> list[str]:
    return sorted(__all__)
