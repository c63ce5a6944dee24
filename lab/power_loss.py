"""What is left of a memory when the power goes: every cut of a run, on a disk that is made up."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import msgspec
import numpy as np

from lab.block_device import PAGE, Cut, Mark, Recorder, cuts_in_order, cuts_out_of_order
from lab.ext4 import copies, mounted, obstacle, written_bytes
from stategate.common.flash import METADATA_BYTES_ESTIMATE
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import SnapshotError, SnapshotWarning
from stategate.contract.staging import scratch_folder
from stategate.runtime import Session, SnapshotPolicy
from stategate.runtime.keep.journal import Journal
from stategate.runtime.keep.keeper import Keeper
from stategate.runtime.keep.replay import Replay
from stategate.runtime.keep.snapshot import Codec

SEED = 19
RING_BYTES = 33 * PAGE  # of a journal that comes around often in a short run
POLICIES = {
    "snapshot": SnapshotPolicy("", every_writes=1),
    "journal": SnapshotPolicy("", journal=True),
}


class Device:
    """A bundle that is stepped and saved, and recovered from what a cut leaves."""

    def __init__(self, bundle: Path, policy: SnapshotPolicy) -> None:
        """Open it once; ``policy`` names no folder that is used."""
        self.session = Session.open(bundle)
        opened = Bundle.open(bundle)
        self.manifest, self._codec = opened.manifest, Codec(opened.manifest, opened.digest)
        self._digest = opened.digest
        self._policy = policy

    def run(self, folder: Path, steps: int, mark: Callable[[str], None]) -> None:
        """Go on with random inputs; ``mark`` takes the digest of states whenever they are safe."""
        rng = np.random.default_rng(SEED)
        with closing(self.keeper(folder)) as keeper:
            keeper.restore()
            self.session._keeper = keeper
            self.session.reset()
            for _ in range(steps):
                inputs = {
                    t.name: rng.standard_normal(t.shape).astype(t.dtype)
                    for t in self.manifest.step.inputs
                }
                before = keeper._saved_changes
                self.session.step(**inputs)
                if keeper._saved_changes != before:
                    mark(self.digest())
            self.session._keeper = None

    def recover(self, folder: Path) -> tuple[str | None, bool]:
        """The digest of the states that a restart finds, and whether it says that some are lost."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SnapshotWarning)
            with closing(self.keeper(folder)) as keeper:
                restored = keeper.restore()
                return self.digest() if restored is not None else None, keeper.problem is not None

    def digest(self) -> str:
        """Of the states as they are."""
        states = self.session._memory.live()
        return hashlib.sha256(b"".join(array.tobytes() for array in states.values())).hexdigest()

    def keeper(self, folder: Path) -> Keeper:
        """What saves and restores in a folder."""
        session = self.session
        policy = replace(self._policy, folder=folder)
        parts = (session._clock, session._counters, session._memory, session._governor)
        assert session._engine is not None
        replay = Replay(self._digest, session._buffers, session._memory, session._engine)
        return Keeper(policy, session.budget, self._codec, *parts, replay)


def judge(device: Device, cuts: Iterable[Cut], committed: set[str]) -> dict[str, int]:
    """Recover from every cut.

    Returns:
        ``cuts``; ``lost``, of these the ones whose state is older than the newest safe one, or that
        gave none back; ``garbage``, whose state is none that was ever committed; ``said``, how
        many of the lost ones said that something is damaged.
    """
    figures = dict.fromkeys(("cuts", "lost", "garbage", "said"), 0)
    with scratch_folder() as folder:
        for cut in cuts:
            for path in list(folder.iterdir()):
                path.unlink()
            for name, raw in cut.content.items():
                (folder / name).write_bytes(raw)
            try:
                digest, says = device.recover(folder)
            except SnapshotError:
                digest, says = None, True
            is_lost = digest not in (cut.safe, cut.coming)
            figures["cuts"] += 1
            figures["lost"] += is_lost
            figures["garbage"] += digest is not None and digest not in committed
            figures["said"] += is_lost and says
    return figures


def lose_power(bundle: Path, policy: SnapshotPolicy, steps: int, samples: int) -> dict[str, Any]:
    """Cut a run everywhere.

    Args:
        bundle: What is stepped.
        policy: How it is saved; the folder is another one.
        steps: Length of the run.
        samples: Cuts out of order, and as many on a disk that lies.

    Returns:
        Figures of `judge` by kind of disk, and what the run wrote.
    """
    device = Device(bundle, policy)
    with scratch_folder() as folder, patch.object(Journal, "file_bytes", lambda *_: RING_BYTES):
        run = Recorder(folder)
        with run.recording():
            device.run(folder, steps, run.mark)
    committed = {event.what for event in run.events if isinstance(event, Mark)}
    return {
        "commits": len(committed),
        "pages": run.pages,
        "renames": run.renames,
        "in_order": judge(device, cuts_in_order(run.events), committed),
        "out_of_order": judge(device, cuts_out_of_order(run.events, SEED, samples), committed),
        "lying": judge(device, cuts_out_of_order(run.events, SEED, samples, 0.02), committed),
    }


def lose_power_of_ext4(
    bundle: Path, policy: SnapshotPolicy, steps: int, every: int, flash_steps: int
) -> dict[str, Any]:
    """The same with a real file system: copies of its disk while it runs, each mounted anew.

    Args:
        bundle: What is stepped.
        policy: How it is saved.
        steps: Length of the run.
        every: After how many calls that change a file the disk is copied.
        flash_steps: Length of another run, of which the disk's own counter says what it wrote.
    """
    device, marks = Device(bundle, policy), [""]
    cuts: list[tuple[Path, int]] = []
    figures = dict.fromkeys(("cuts", "lost", "garbage"), 0)
    with scratch_folder() as root:
        image = root / "image"
        with (
            mounted(image, root / "disk") as disk,
            patch.object(Journal, "file_bytes", lambda *_: RING_BYTES),
            copies(image, every, lambda copy: cuts.append((copy, len(marks) - 1))),
        ):
            device.run(disk / "folder", steps, marks.append)
        for copy, safe in cuts:
            with mounted(copy, root / "after") as disk:
                digest = device.recover(disk / "folder")[0] or ""
            copy.unlink()
            figures["cuts"] += 1
            figures["lost"] += digest not in marks[safe : safe + 2]
            figures["garbage"] += digest not in marks
        with mounted(image, root / "disk") as disk:
            device.run(disk / "flash", 100, lambda _: None)
            os.sync()
            before, commits = written_bytes(disk), list[str]()
            device.run(disk / "flash", flash_steps, commits.append)
            os.sync()
            written = written_bytes(disk) - before
    return figures | {"commits": len(commits), "flash_bytes": written // len(commits)}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--steps", default=1000, show_default=True, help="Length of the run.")
@click.option("--samples", default=2000, show_default=True, help="Cuts out of order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def power_loss(bundle: Path, steps: int, samples: int, out: Path) -> None:
    """Cut the power at every moment of a run of BUNDLE, and see what a restart finds."""
    place = out / "power-loss.json"
    check_writable(place)
    rows = {name: lose_power(bundle, policy, steps, samples) for name, policy in POLICIES.items()}
    for name, row in rows.items():
        row["ext4"] = obstacle() or lose_power_of_ext4(
            bundle, POLICIES[name], steps, every=1, flash_steps=10 * steps
        )
    honest = ("in_order", "out_of_order", "ext4")
    kinds = [row[kind] for row in rows.values() for kind in honest if isinstance(row[kind], dict)]
    record: dict[str, Any] = {"model": Bundle.open(bundle).manifest.model.name, "seed": SEED}
    record |= {name: sum(kind[name] for kind in kinds) for name in ("cuts", "lost", "garbage")}
    record["garbage"] += sum(row["lying"]["garbage"] for row in rows.values())
    for name, row in rows.items():
        written = PAGE * row["pages"] + METADATA_BYTES_ESTIMATE * row["renames"]
        is_measured = isinstance(row["ext4"], dict)
        record[f"flash_bytes_{name}"] = (
            row["ext4"]["flash_bytes"] if is_measured else written // row["commits"]
        )
    write_whole(place, msgspec.json.format(msgspec.json.encode(record | {"rows": rows})))
    click.echo("; ".join(f"{name} {value}" for name, value in record.items()))
    if obstacle():
        click.echo(f"not tried on ext4, and flash bytes estimated: {obstacle()}")
    if record["lost"] or record["garbage"]:
        raise SystemExit(1)
