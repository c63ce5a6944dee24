"""Flash wear as arithmetic: bytes persisted, the endurance of a medium, years.

Only what is persisted wears a device; writes to memory never do. For the formulas::

    host bytes of a snapshot = ceil(snapshot / block) * block + metadata
    endurance                = capacity * cycles / write amplification    (JEDEC's TBW)
    lifetime                 = endurance / (host bytes of a snapshot * snapshots per second)

What a device says of itself is read by ``wear_counters``.
"""

from __future__ import annotations

import math

from stategate.contract import Storage, endurance_bytes
from stategate.contract.errors import SpecError

SECONDS_PER_DAY = 86_400
SECONDS_PER_YEAR = 31_557_600  # 365.25 days


def host_bytes_per_snapshot(storage: Storage, snapshot_bytes: int) -> int:
    """Bytes that the host writes to replace a snapshot atomically: whole blocks and metadata.

    Args:
        storage: Gives the block and the metadata.
        snapshot_bytes: Size of the file, header included.

    Raises:
        SpecError: ``snapshot_bytes`` is negative.
    """
    _check("snapshot_bytes", snapshot_bytes, zero=True)
    blocks = -(-snapshot_bytes // storage.block_bytes)
    return blocks * storage.block_bytes + storage.metadata_bytes


def bytes_per_day(storage: Storage, snapshot_bytes: int, snapshots_per_second: float) -> float:
    """Bytes that the host writes in a day at a rate of snapshots.

    Raises:
        SpecError: A size or a rate is negative or not finite.
    """
    _check("snapshots_per_second", snapshots_per_second, zero=True)
    per_snapshot = host_bytes_per_snapshot(storage, snapshot_bytes)
    return per_snapshot * snapshots_per_second * SECONDS_PER_DAY


def lifetime_years(storage: Storage, snapshot_bytes: int, snapshots_per_second: float) -> float:
    """Years until snapshots alone have worn the medium out.

    Returns:
        Years of 365.25 days; infinite where nothing is written.

    Raises:
        SpecError: A size or a rate is negative or not finite.
    """
    daily = bytes_per_day(storage, snapshot_bytes, snapshots_per_second)
    if daily == 0:
        return math.inf
    return endurance_bytes(storage) / daily * SECONDS_PER_DAY / SECONDS_PER_YEAR


def max_bytes_per_day(storage: Storage, years: float) -> float:
    """Bytes that the host may write in a day for the medium to last.

    Raises:
        SpecError: ``years`` is not positive and finite.
    """
    _check("years", years)
    return endurance_bytes(storage) / (years * SECONDS_PER_YEAR) * SECONDS_PER_DAY


def max_snapshots_per_second(storage: Storage, snapshot_bytes: int, years: float) -> float:
    """Highest rate of snapshots at which the medium lasts.

    Returns:
        Snapshots per second; infinite where a snapshot costs nothing.

    Raises:
        SpecError: ``years`` is not positive and finite, or ``snapshot_bytes`` is negative.
    """
    daily = max_bytes_per_day(storage, years)
    per_snapshot = host_bytes_per_snapshot(storage, snapshot_bytes)
    return daily / (per_snapshot * SECONDS_PER_DAY) if per_snapshot else math.inf


def _check(name: str, value: float, *, zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise SpecError(
            f"{name} cannot be",
            found=value,
            expected="a finite number, 0 or more" if zero else "a finite number above 0",
        )
