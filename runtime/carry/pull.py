"""Taking a bundle out of a registry: nothing is at its place before all of it was checked."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stategate.contract import Bundle, refuse_to_replace
from stategate.contract.arguments import checks_kinds
from stategate.contract.durable import make_folder, move_into_place, sync_folder
from stategate.contract.errors import BundleError, RegistryError
from stategate.contract.failures import failures
from stategate.contract.reading import file_sha256
from stategate.contract.staging import hold, remove, staged
from stategate.runtime.carry.artifact import Descriptor, check_digest, unpacked
from stategate.runtime.carry.reference import Reference

if TYPE_CHECKING:
    from stategate.runtime.carry.registry import Repository


@checks_kinds
def pull(source: str, out: str | Path, *, plain_http: bool = False) -> Bundle:
    """Take a bundle out of a registry; an older bundle at ``out`` is replaced in one step.

        bundle = stategate.pull("oci://registry.example.org/policies/walk:1.2", "policies/walk")

    Whoever was interrupted pulls again: what is there already is checked and not loaded again. A
    digest says that these are the bytes that were asked for, and not who made them.

    Args:
        source: ``oci://HOST[:PORT]/NAME[:TAG][@sha256:...]``; a digest goes before a tag.
        out: The bundle's folder.
        plain_http: Ask without encryption; a registry on this machine always is.

    Raises:
        RegistryError: The registry does not answer, or holds something else.
        DigestError: It gives other bytes than those that it names.
        BundleError: What it holds is no whole bundle, or something else is at ``out``.
    """
    from stategate.runtime.carry.registry import Repository

    reference, out = Reference.parse(source), Path(out).resolve()
    refuse_to_replace(out)
    repository = Repository(reference, plain_http)
    artifact = unpacked(repository.manifest())
    make_folder(out.parent)
    _check_room(out.parent, sum(layer.size for layer in artifact.layers))
    with _loading(out) as blobs:
        for layer in artifact.layers:
            _load(repository, layer, blobs / layer.sha256)
        with staged(out, folder=True) as new:
            for layer in artifact.layers:
                file = new / layer.path
                file.parent.mkdir(parents=True, exist_ok=True)
                _link(blobs / layer.sha256, file)
            for folder in (new, *(p for p in new.rglob("*") if p.is_dir())):
                sync_folder(folder)
            checked = Bundle.open(new)
            if strays := checked.undeclared_files():
                raise BundleError(
                    "the registry holds files that the bundle's manifest does not list",
                    found=", ".join(strays[:5]),
                    remedy="do not use this bundle; stategate did not push it",
                )
            new.chmod(0o755)
            move_into_place(new, out)
        remove(blobs)
    return Bundle(out, checked.manifest, checked.digest)


def _load(repository: Repository, layer: Descriptor, file: Path) -> None:
    """One file by its digest, from where the last attempt ended."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o644)
    try:
        start = min(os.fstat(descriptor).st_size, layer.size)
        if start < layer.size or layer.size == 0:
            for place, piece in repository.chunks(layer.digest, start, layer.size):
                os.pwrite(descriptor, piece, place)
                start = place + len(piece)
        os.ftruncate(descriptor, start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if start < layer.size:
        raise RegistryError(
            "the registry broke off",
            found=f"{start:,} of {layer.size:,} bytes of {layer.path}",
            remedy="pull again: what is here stays here",
        )
    try:
        check_digest(layer.path, layer.digest, file_sha256(file)[0])
    except BundleError:
        remove(file)  # or the next attempt would go on with it
        raise


@contextmanager
def _loading(out: Path) -> Iterator[Path]:
    """A folder next to ``out`` that outlives this process, for one process at a time."""
    folder, descriptor = out.with_name(f".{out.name}.pulled"), None
    while descriptor is None:  # another process has just finished, and removed it
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor, _ = hold(folder, wait=True)
        except failures(OSError) as problem:
            raise _foreign(folder) from problem
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise _foreign(folder)
        yield folder
    finally:
        os.close(descriptor)


def _foreign(folder: Path) -> BundleError:
    return BundleError(
        "the place of an unfinished download is not a folder of yours",
        found=folder,
        remedy="remove it, or choose another --out",
    )


def _link(blob: Path, file: Path) -> None:
    try:
        os.link(blob, file)
    except failures(OSError):  # a file system without links
        shutil.copyfile(blob, file)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            "the bundle does not fit here",
            found=f"{free:,} bytes free in {folder}",
            expected=f"{needed:,}",
            remedy="choose another disk with --out",
        )
