"""The on-device library. Importing it loads neither torch, onnx nor an engine's library."""

from typing import TYPE_CHECKING, Any

from stategate.common.onnx_runtime import silence
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.real_time import RealTime
from stategate.runtime.keep.black_box import BlackBox
from stategate.runtime.keep.policy import Restored, SnapshotPolicy
from stategate.runtime.session import Session

if TYPE_CHECKING:
    from stategate.runtime.behind import WrappedSession
    from stategate.runtime.pool import Pool

silence()

__all__ = [
    "BlackBox",
    "Ledger",
    "Pool",
    "RealTime",
    "Restored",
    "Session",
    "SnapshotPolicy",
    "WrappedSession",
]


def __getattr__(name: str) -> Any:
    if name == "Pool":
        from stategate.runtime.pool import Pool  # most devices step one session

        return Pool
    if name == "WrappedSession":
        from stategate.runtime.behind import WrappedSession

        return WrappedSession
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
