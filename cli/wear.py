"""``stategate device wear``: how long the flash lasts under each snapshot policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from stategate.bench.wear import (
    WearRow,
    journal_rows,
    state_bytes,
    state_lines,
    wear_rows,
    write_rate,
)
from stategate.cli.options import EXISTING, INDEX, POSITIVE, SHARE, bundle_verb, option
from stategate.cli.show import Line, show
from stategate.common.flash import Storage, endurance_bytes, host_bytes_per_snapshot
from stategate.common.wear_counters import DeviceWear, read_wear
from stategate.contract import Bundle, Manifest
from stategate.runtime.keep.replay import record_bytes
from stategate.runtime.keep.snapshot import Codec

_DAYS_PER_YEAR = 365.25


@bundle_verb()
@option("--rate", "rate_hz", type=POSITIVE, required=True, help="Steps per second.")
@option("--storage", "storage_name", help="Medium by name, such as emmc-16gb.")
@option("--target", help="Device whose media are shown; the bundle's if left out.")
@option("--tbw", type=POSITIVE, help="Rated endurance in 10^12 bytes.")
@option(
    "--metadata-bytes",
    type=INDEX,
    help="What a rewrite costs beside the file, as measured; 20480 is an estimate.",
)
@option(
    "--write-rate",
    "share",
    type=SHARE,
    help="Share of steps that write; the manifest's if left out.",
)
@option(
    "--path", type=EXISTING, help="A folder on this machine: show what its device says of its wear."
)
def wear(
    bundle: Path,
    rate_hz: float,
    storage_name: str | None,
    target: str | None,
    metadata_bytes: int | None,
    share: float | None,
    path: Path | None,
    tbw: float | None,
) -> None:
    """Show how long the flash lasts when BUNDLE's memory is saved there, by snapshot policy.

    The medium is given by name, or by its rating: capacity times program/erase cycles, divided by
    the write amplification, is what manufacturers call TBW.

    \b
    Examples:
      stategate device wear build/aura --rate 30 --storage emmc-16gb
      stategate device wear build/aura --rate 100 --tbw 150 --write-rate 0.05
      stategate device wear build/aura --rate 30 --storage sd-32gb-consumer --path /var/lib/robot
    """
    manifest = Bundle.open(bundle).manifest
    ways = {"--storage": storage_name, "--target": target, "--tbw": tbw}
    if len(several := [flag for flag, value in ways.items() if value is not None]) > 1:
        raise click.UsageError(f"{' and '.join(several)} contradict each other; give one")
    storages = _by_name(storage_name, target, manifest) if tbw is None else [_rated(tbw)]
    if metadata_bytes is not None:
        storages = [_with_metadata(storage, metadata_bytes) for storage in storages]
    writes = write_rate(manifest, share)
    snapshot_bytes = Codec(manifest).file_bytes
    what, change_bytes = record_bytes(manifest)
    tables = [
        (
            s,
            wear_rows(s, snapshot_bytes, rate_hz, writes),
            journal_rows(s, manifest, rate_hz, writes),
        )
        for s in storages
    ]
    device = read_wear(path) if path is not None else None
    record = {
        "model": manifest.model.name,
        "state_bytes": manifest.state_bytes,
        "snapshot_bytes": snapshot_bytes,
        "record": what,
        "record_bytes": change_bytes,
        "rate_hz": rate_hz,
        "write_rate": writes,
        "bytes": state_bytes(manifest, writes),
        "tables": [
            {
                "storage": s,
                "endurance_bytes": endurance_bytes(s),
                "host_bytes_per_snapshot": host_bytes_per_snapshot(s, snapshot_bytes),
                "rows": rows,
                "journal_rows": journal,
            }
            for s, rows, journal in tables
        ],
        "device": asdict(device) | {"estimate": device.estimate} if device else None,
    }
    states = f"{manifest.state_bytes:,} of state, the rest header and checksum"
    lines: list[Line] = [
        ("model", f"{manifest.model.name} at {rate_hz:g} steps per second"),
        ("snapshot", f"{snapshot_bytes:,} bytes: {states}"),
        ("journal", f"{change_bytes:,} bytes for each change: {what}"),
        ("writes", f"{writes.share:.1%} of steps ({writes.source})"),
    ]
    lines += state_lines(state_bytes(manifest, writes))
    if device is not None:
        lines.append(("device", _describe(device)))
    for storage, snapshots, commits in tables:
        lines += ["", *_table(storage, snapshot_bytes, snapshots + commits)]
    show(record, lines)


def _rated(tbw: float) -> Storage:
    return Storage("as given", "given on the command line", endurance_bytes=round(tbw * 1e12))


def _by_name(name: str | None, target: str | None, manifest: Manifest) -> list[Storage]:
    """The named medium, or those of the target."""
    # Only here, because a device with Python 3.10 has no TOML reader; figures work without one.
    from stategate.targets import load, load_storage, storage_names

    if name is not None:
        return [load_storage(name)]
    if target is None and manifest.target is not None:
        target = manifest.target.name
    media = load(target).storage.value if target is not None else None
    storages = [load_storage(row) for row in media or ()]
    if not storages:
        whose = f"of target {target}" if target is not None else "of a bundle for any target"
        raise click.UsageError(
            f"the storage {whose} is not known; give --storage ({', '.join(storage_names())}), "
            "or --tbw"
        )
    return storages


def _with_metadata(storage: Storage, metadata_bytes: int) -> Storage:
    return msgspec.structs.replace(
        storage,
        metadata_bytes=metadata_bytes,
        assumed=tuple(field for field in storage.assumed if field != "metadata_bytes"),
    )


def _table(storage: Storage, snapshot_bytes: int, rows: tuple[WearRow, ...]) -> Iterator[Line]:
    written = host_bytes_per_snapshot(storage, snapshot_bytes)
    yield "storage", f"{storage.name}, {endurance_bytes(storage) / 1e12:.4g} TBW"
    yield "source", storage.source
    yield "written", f"{written:,} bytes for each snapshot: whole blocks and metadata"
    if assumed := list(dict.fromkeys(field for row in rows for field in row.assumed)):
        yield "assumed", ", ".join(assumed)
    yield f"{'snapshot':<22} {'bytes per day':>20} {'years':>22}  estimate"
    for row in rows:
        estimate = "yes" if row.estimate else "no"
        yield f"{row.policy:<22} {row.bytes_per_day:>20,.0f} {_years(row.years):>22}  {estimate}"


def _years(years: float | None) -> str:
    if years is None:
        return "for ever"
    if years < 0.1:
        return f"{years:.2g} ({years * _DAYS_PER_YEAR:.2g} days)"
    return f"{years:,.0f}" if years >= 100 else f"{years:.3g}"


def _describe(device: DeviceWear) -> str:
    if device.device is None:
        return "no single block device is behind that path; the years are an estimate"
    parts = [f"{device.device} ({device.kind})"]
    used = device.life_used_percent
    if used is None:
        parts.append("says nothing of its wear, so the years are an estimate")
    elif used > 100:
        parts.append("its rated life is exceeded")
    else:
        parts.append(f"at most {used} % of its rated life used; the years are those of a new one")
    if device.reserve is not None:
        parts.append(f"spare blocks: {device.reserve}")
    if device.host_bytes_since_boot is not None:
        parts.append(f"{device.host_bytes_since_boot:,} bytes written since boot")
    return "; ".join(parts)
