"""Flash wear as arithmetic: what a medium endures, what snapshots cost it, and how long it lasts.

Only what is persisted wears a device; writes to memory never do. For the formulas::

    host bytes of a snapshot = ceil(snapshot / block) * block + metadata
    endurance                = capacity * cycles / write amplification    (JEDEC's TBW)
    lifetime                 = endurance / (host bytes of a snapshot * snapshots per second)

`stategate.common.wear_counters` reads what a device says of itself.
"""

from __future__ import annotations

import math

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record

SECONDS_PER_DAY = 86_400
SECONDS_PER_YEAR = 31_557_600  # 365.25 days
# tmp + fsync + rename + fsync of the folder on ext4 (data=ordered) rewrites four to six blocks of
# journal and metadata. High: `make power-loss` counts 14 KiB; count yours in /sys/block/*/stat.
METADATA_BYTES_ESTIMATE = 20 * 1024


class Storage(Record, frozen=True):
    """A medium that snapshots go to.

    Its endurance is given in one of two ways: bytes that a host may write, as manufacturers rate
    drives and cards, or program/erase cycles of its cells and a write amplification.
    """

    name: str  # its name on the command line
    source: str  # where the figures come from, in one sentence
    capacity_bytes: int | None = None  # nominal size; needed with ``pe_cycles``
    endurance_bytes: int | None = None  # bytes that a host may write in all (10^12 to the TBW)
    pe_cycles: float | None = None  # program/erase cycles that a cell survives
    # bytes written to cells for each byte that the host writes, 1 or more
    write_amplification: float | None = None
    block_bytes: int = 4096  # block of the file system; a file takes whole blocks
    # journal and metadata that one atomic rewrite costs beside the file
    metadata_bytes: int = METADATA_BYTES_ESTIMATE
    # fields whose figures are estimates rather than ratings or measurements
    assumed: tuple[str, ...] = ("metadata_bytes",)

    def __post_init__(self) -> None:
        """Check that the endurance is given in exactly one way and that every figure can be."""
        cells = (self.pe_cycles, self.write_amplification)
        if self.endurance_bytes is not None and cells != (None, None):
            raise SpecError(
                f"storage {self.name!r} gives its endurance twice",
                found="endurance_bytes beside pe_cycles or write_amplification",
                expected="one of the two ways",
                remedy="a rating in bytes already contains the write amplification",
            )
        for field in ("capacity_bytes", "endurance_bytes", "pe_cycles", "block_bytes"):
            _check_at_least(self, field, 0, inclusive=False)
        _check_at_least(self, "write_amplification", 1, inclusive=True)
        _check_at_least(self, "metadata_bytes", 0, inclusive=True)
        unknown = sorted(set(self.assumed) - set(self.__struct_fields__))
        if unknown:
            raise SpecError(
                f"storage {self.name!r} assumes fields that it does not have",
                found=", ".join(unknown),
                expected=", ".join(self.__struct_fields__),
            )
        endurance_bytes(self)


def endurance_bytes(storage: Storage) -> float:
    """Bytes that a host may write until the medium is worn out.

    Returns:
        The rating where there is one, else ``capacity * cycles / write amplification``: what JEDEC
        calls TBW.
    """
    if storage.endurance_bytes is not None:
        return float(storage.endurance_bytes)
    capacity, cycles = storage.capacity_bytes, storage.pe_cycles
    amplification = storage.write_amplification
    if capacity is None or cycles is None or amplification is None:
        raise SpecError(
            f"flash medium {storage.name!r} does not say how much may be written",
            expected="endurance_bytes, or capacity_bytes, pe_cycles and write_amplification",
        )
    return capacity * cycles / amplification


def _check_at_least(storage: Storage, field: str, low: int, *, inclusive: bool) -> None:
    value = getattr(storage, field)
    fits = value is None or (math.isfinite(value) and (value >= low if inclusive else value > low))
    if not fits:
        raise SpecError(
            f"flash {storage.name!r}: {field} must be {'at least' if inclusive else 'above'} {low}",
            found=value,
        )


def host_bytes_per_snapshot(storage: Storage, snapshot_bytes: int) -> int:
    """Bytes that the host writes to replace a snapshot atomically: whole blocks and metadata."""
    _check("snapshot_bytes", snapshot_bytes)
    blocks = -(-snapshot_bytes // storage.block_bytes)
    return blocks * storage.block_bytes + storage.metadata_bytes


def bytes_per_day(storage: Storage, snapshot_bytes: int, snapshots_per_second: float) -> float:
    """Bytes that the host writes in a day at a rate of snapshots."""
    _check("snapshots_per_second", snapshots_per_second)
    per_snapshot = host_bytes_per_snapshot(storage, snapshot_bytes)
    return per_snapshot * snapshots_per_second * SECONDS_PER_DAY


def years_at(storage: Storage, daily_bytes: float) -> float:
    """Years until so many bytes a day have worn the medium out; infinite for none."""
    if daily_bytes == 0:
        return math.inf
    return endurance_bytes(storage) / daily_bytes * SECONDS_PER_DAY / SECONDS_PER_YEAR


def _check(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise SpecError(f"{name} must be a finite number, 0 or more", found=value)
