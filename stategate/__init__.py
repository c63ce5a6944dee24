"""Ship models whose memory never grows."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stategate.contract import Budget
    from stategate.runtime import Pool, Session, SnapshotPolicy

__version__ = "0.2.0"
__all__ = ["Budget", "Pool", "Session", "SnapshotPolicy", "__version__"]

_HOMES = {
    "Budget": "contract",
    "Pool": "runtime",
    "Session": "runtime",
    "SnapshotPolicy": "runtime",
}


def __getattr__(name: str) -> object:
    """A name of the front door; its room is imported when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
