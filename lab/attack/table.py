"""The table of the attack, remade by one command."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import msgspec

from lab.attack import disks, lives
from lab.attack.doors import DOORS
from lab.attack.places import BUNDLE, Fuzzed
from lab.evidence.pages import filled
from stategate.common.tables import markdown_table
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import MeasurementError

SEED = 20
FULL = 1.0
SHARE = 0.05  # of the full size, in a run without options
FUZZED_INPUTS = 20_000_000
_PAGE = Path("docs/evidence/attack.md")
# What the first edition was tried with, and lost. It kept no count of pools and of sessions; of
# budgets it has the ones that broke.
FIRST = {
    "kills": ("3,000", "0"),
    "disk errors": ("8,000", "0"),
    "full disks": ("800", "0"),
    "damaged files": ("23,200", "0"),
    "fuzzed files": ("20,000,000", "0"),
    "budgets": ("six ways", "6 broken"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of attack."""

    kind: str
    what: str  # such as the door that was fuzzed
    tried: int
    lost: int
    seconds: float
    seed: int


def attack_rows(share: float, seed: int, fuzz_place: Path) -> Iterator[Row]:
    """Every kind of attack, of a share of the full size."""

    def of(full: int) -> int:
        return max(1, math.ceil(full * share))

    kinds: list[tuple[str, str, Callable[[], tuple[int, int]]]] = [
        ("disk errors", "a call fails", lambda: disks.failing_disks(BUNDLE, of(8000), seed, False)),
        ("full disks", "calls fail", lambda: disks.failing_disks(BUNDLE, of(800), seed, True)),
        ("damaged files", "of bundles", lambda: disks.damaged_bundles(BUNDLE, of(11_600), seed)),
        ("damaged files", "of memory", lambda: disks.damaged_memories(BUNDLE, of(11_600), seed)),
        ("lost power", "each moment", lambda: lives.cut_power(BUNDLE, of(1000), of(2000))),
        ("bleed", "rows of a pool", lambda: lives.bleeding_pools(of(1000), seed)),
        ("open and close", "sessions", lambda: lives.sessions_that_come_and_go(BUNDLE, of(10_000))),
    ]
    for kind, what, attack in kinds:
        start = time.monotonic()
        tried, lost = attack()
        yield Row(kind, what, tried, lost, round(time.monotonic() - start, 1), seed)
    start = time.monotonic()
    killed, events, lost = lives.robots_lives(of(3000), seed)
    seconds = round(time.monotonic() - start, 1)
    yield Row("kills", "robots with a folder", killed, lost, seconds, seed)
    yield Row("budgets", "events of their lives", events, lost, seconds, seed)
    yield from fuzz_rows(share, seed, fuzz_place)


def fuzz_rows(share: float, seed: int, place: Path) -> Iterator[Row]:
    """Every door, in a process that has loaded nothing else; see `lab.attack.fuzz`."""
    # The full size counts inputs; a share of it counts seconds, of which a minute is the least.
    size = ["--inputs", str(FUZZED_INPUTS // len(DOORS))]
    if share < FULL:
        size = ["--seconds", str(max(60.0, 2400 * share))]
    command = [sys.executable, "-m", "lab.attack.fuzz", *size, "--seed", str(seed)]
    done = subprocess.run([*command, "--out", str(place)], check=False)
    if done.returncode not in (0, 1):
        raise MeasurementError("the fuzzers stopped", found=f"exit code {done.returncode}")
    for result in msgspec.json.decode((place / "fuzz.json").read_bytes(), type=list[Fuzzed]):
        seconds = round(result.seconds, 1)
        lost = len(result.broken)
        yield Row("fuzzed files", result.door, result.tried, lost, seconds, seed)


def page(text: str, rows: list[Row], share: float) -> str:
    """The page with its tables, the first beside that of the first edition, made anew."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    lines = []
    for kind in kinds:
        own = [row for row in rows if row.kind == kind]
        tried, lost = sum(row.tried for row in own), sum(row.lost for row in own)
        lines.append([kind, *FIRST.get(kind, ("not counted", "")), f"{tried:,}", f"{lost:,}"])
    doors = [
        [row.what, f"{row.tried:,}", f"{row.lost:,}", f"{row.seconds:,.0f}"]
        for row in rows
        if row.kind == "fuzzed files"
    ]
    first = markdown_table(
        ["kind", "first edition: tried", "lost", "this one: tried", "lost"],
        lines,
        right=(1, 2, 3, 4),
    )
    second = markdown_table(["door", "files", "lost", "seconds"], doors, right=(1, 2, 3))
    size = f"This run had {100 * share:g} % of the full size, and seed {rows[0].seed}.\n\n"
    return filled(text, {"table": size + first, "doors": second})


@click.command()
@click.option("--share", default=SHARE, show_default=True, help="Of the full size, which is 1.")
@click.option("--seed", default=SEED, show_default=True, help="Of chance.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench/attack.json"))
def attack(share: float, seed: int, out: Path) -> None:
    """Kill, fill, damage, fuzz and overdraw, and count what is lost."""
    check_writable(out)
    rows = []
    for row in attack_rows(share, seed, Path("build/fuzz").absolute()):
        click.echo(
            f"{row.kind}, {row.what}: {row.tried:,} tried, {row.lost:,} lost, {row.seconds} s"
        )
        rows.append(row)
    record = {"share": share, "rows": [asdict(row) for row in rows]}
    write_whole(out, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    if any(row.lost for row in rows):
        raise SystemExit(1)
    write_whole(_PAGE, page(_PAGE.read_text(), rows, share).encode())
