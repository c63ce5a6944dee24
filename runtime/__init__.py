"""The on-device library. Importing it loads neither torch, onnx nor an engine's library."""

from stategate.common.dependencies import silence
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.keep.keeper import Restored, SnapshotPolicy
from stategate.runtime.pool import Pool
from stategate.runtime.session import Session

silence()

__all__ = ["Ledger", "Pool", "Restored", "Session", "SnapshotPolicy"]
