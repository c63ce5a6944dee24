"""A bundle as a copy in a slot, whole or not there."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import MANIFEST, SEAL, SIGNATURE
from stategate.contract.durable import make_folder, move_into_place, sync_folder
from stategate.contract.errors import DigestError, InstallError
from stategate.contract.staging import remove, staged

_PART_BYTES = 1 << 20


def unpack(bundle: Bundle, place: Path) -> None:
    """Copy the files that a manifest lists, and its signature; nothing else comes along.

    Each file is checked against its digest as it is copied. A process that dies meanwhile leaves
    what was at ``place`` until now, or nothing.

    Raises:
        DigestError: A file changed since the bundle was opened.
    """
    with staged(place, folder=True) as new:
        digests = {file.path: file.sha256 for file in bundle.manifest.all_files}
        digests[MANIFEST] = bundle.digest
        for name in (*digests, SEAL, SIGNATURE):
            if name == SIGNATURE and not (bundle.path / name).is_file():
                continue
            digest = _copy(bundle.path / name, new / name)
            if digests.get(name, digest) != digest:
                raise DigestError(
                    "a file of the bundle changed while it was installed",
                    found=f"sha256 {digest} of {name}",
                    expected=f"sha256 {digests[name]}",
                    remedy="install it again, once nobody writes to it",
                )
        for folder in (new, *(path for path in new.rglob("*") if path.is_dir())):
            sync_folder(folder)
        new.chmod(0o755)
        if place.exists():  # of an update that was refused or taken back: nobody opens it again
            remove(place)
        move_into_place(new, place)


def _copy(source: Path, goal: Path) -> str:
    make_folder(goal.parent)
    digest = hashlib.sha256()
    with source.open("rb") as old, goal.open("xb") as new:
        while part := old.read(_PART_BYTES):
            digest.update(part)
            new.write(part)
        new.flush()
        os.fsync(new.fileno())
    return digest.hexdigest()


def check_machine(manifest: Manifest) -> None:
    """Refuse a bundle that was made for another kind of machine, or for several sessions."""
    device = manifest.target
    if device is not None and device.machine != platform.machine():
        raise InstallError(
            "the bundle is for another machine",
            found=f"{device.machine} ({device.name})",
            expected=platform.machine(),
            remedy="export it for this machine: stategate device retarget BUNDLE --help",
        )
    if manifest.sessions != 1:
        raise InstallError(
            "a pool cannot be installed",
            found=f"{manifest.sessions} sessions in each step",
            expected="a bundle for one session",
            remedy="export the model again without --sessions",
        )


def check_replaces(manifest: Manifest, running: Manifest) -> None:
    """Refuse an update whose steps a caller of the running bundle could not take.

    Raises:
        InstallError: Inputs, outputs or what they mean differ.
    """
    for side in ("inputs", "outputs"):
        new, old = (
            [(t.name, list(t.shape), t.dtype) for t in getattr(m, side)]
            for m in (manifest, running)
        )
        if new != old:
            raise InstallError(
                f"the bundle has other {side} than the one that runs",
                found=_words(new),
                expected=_words(old),
                remedy="install it into a folder of its own, for a program that is made for it",
            )
    meanings = manifest.observation, running.observation
    if None not in meanings and meanings[0] != meanings[1]:
        raise InstallError(
            "the bundle gives its inputs or outputs another meaning than the one that runs",
            remedy="compare both with: stategate inspect; then install it into a folder of its own",
        )


def _words(tensors: list[tuple[str, list[int], str]]) -> str:
    return "; ".join(f"{name} {dtype} {shape}" for name, shape, dtype in tensors)
