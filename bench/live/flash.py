"""How long flash lasts if each write is saved, for a page that knows the rate of writes."""

from __future__ import annotations

from typing import Any

from stategate.common.flash import Storage, endurance_bytes, host_bytes_per_snapshot
from stategate.contract import Manifest
from stategate.runtime.keep.snapshot import Codec


def flash_facts(storage: Storage, manifest: Manifest) -> dict[str, Any]:
    """How many snapshots a new medium takes, and whether an assumption is behind the figure."""
    cost = host_bytes_per_snapshot(storage, Codec(manifest).file_bytes)
    saves = endurance_bytes(storage) / cost
    return {"medium": storage.name, "saves": saves, "assumed": bool(storage.assumed)}
