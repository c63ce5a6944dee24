"""The bundle on disk: a folder that is either whole or not there.

``manifest.json`` carries the SHA-256 of every other file, ``manifest.sha256`` that of the manifest,
in the format of ``sha256sum``. The digest of the manifest is the identity of the whole bundle.
Digests find accidents and careless edits; who made it is said by ``model.sig``, where there is one.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from stategate.contract.durable import (
    check_writable,
    make_folder,
    move_into_place,
    sync_folder,
    write_synced,
)
from stategate.contract.errors import (
    BundleError,
    DigestError,
    EpisodeError,
    ManifestError,
    ResultError,
)
from stategate.contract.failures import failures
from stategate.contract.manifest import FileRef, Manifest, decode_manifest
from stategate.contract.reading import FILE_BYTES, RECORD_BYTES, file_sha256, read_bounded
from stategate.contract.receipts import Verification
from stategate.contract.records import canonical_json
from stategate.contract.staging import staged

if TYPE_CHECKING:
    from stategate.contract.episode import Episode

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
# Signs the manifest and all that this lists, so it cannot be in that list.
SIGNATURE = "model.sig"
# A writer swaps the folder in one step; a reader that it overtakes so often in a row gives up.
_LOOKS = 5
_SEAL_BYTES = 4096


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def folder_of(bundle: str | Path | Bundle) -> Path:
    """Where a bundle is, by its path or opened.

    Raises:
        BundleError: It is something else.
    """
    try:
        return Path(bundle)
    except TypeError:
        raise BundleError(
            "this is not a bundle",
            found=f"a {type(bundle).__name__}",
            expected="its folder, or the Bundle that make or adopt gave",
        ) from None


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """An opened bundle whose files were all checked against their digests.

    Attributes:
        path: The folder.
        manifest: What it promises.
        digest: SHA-256 of the manifest; identifies the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    def __fspath__(self) -> str:
        """Its folder: an opened bundle stands wherever a path of one may."""
        return os.fspath(self.path)

    def __repr__(self) -> str:
        facts = f"{self.manifest.model.name}, {self.manifest.state_bytes} bytes of memory"
        return f"<Bundle {self.path}: {facts}, {self.manifest.standing}, {self.digest[:12]}>"

    @property
    def receipt(self) -> Verification | None:
        """What the check against its model found; None of a draft that was never checked."""
        return self.manifest.verification

    @classmethod
    def open(cls, path: str | Path | Bundle) -> Bundle:
        """Open a bundle and check every digest.

        Raises:
            BundleError: The folder, its manifest or a file of it is missing.
            DigestError: A file is not what the manifest says.
            DigestError: A file lies outside the folder.
            ManifestError: The manifest is malformed or of another schema version.
        """
        path = folder_of(path)
        for _ in range(_LOOKS - 1):
            folder_before = _folder_identity(path)
            try:
                return cls._open_once(path)
            except (BundleError, ManifestError):
                if _folder_identity(path) == folder_before:
                    raise
        return cls._open_once(path)

    @classmethod
    def _open_once(cls, path: Path) -> Bundle:
        bundle = cls._open_unchecked(path)
        for file in bundle.manifest.all_files:
            with _reading(bundle.path, file.path) as full:
                _check_digest(file, *file_sha256(full))
        return bundle

    @classmethod
    def _open_unchecked(cls, path: Path) -> Bundle:
        if not os.path.lexists(path / MANIFEST):
            raise BundleError(
                "this is not a bundle",
                found=f"{path} {'without ' + MANIFEST if path.is_dir() else 'is no folder'}",
                expected=f"a folder with {MANIFEST}",
                remedy="make one with: stategate export, or stategate adopt",
            )
        with _reading(path, MANIFEST) as full:
            raw = read_bounded(full, RECORD_BYTES)
        # The schema is judged first: a newer bundle deserves its own message.
        manifest = decode_manifest(raw)
        digest = sha256(raw)
        seal = b""
        if os.path.lexists(path / SEAL):
            with _reading(path, SEAL) as full:
                seal = read_bounded(full, _SEAL_BYTES)
        if seal != seal_of(digest):
            raise DigestError(
                f"{MANIFEST} and {SEAL} do not belong together: one is altered or missing",
                found=digest,
                expected=seal[:64].decode(errors="replace") or f"its digest in {SEAL}",
                remedy="export the bundle again, or copy it again",
            )
        return cls(path.absolute(), manifest, digest)

    def read(self, file: FileRef) -> bytes:
        """Bytes of one file, checked against the digest at the moment of reading.

        Raises:
            DigestError: It is missing, no regular file, or not what the manifest says.
            DigestError: It is a link that leaves the bundle.
        """
        with _reading(self.path, file.path) as full:
            data = read_bounded(full, FILE_BYTES)
        _check_digest(file, sha256(data), len(data))
        return data

    def golden(self) -> Episode | None:
        """The golden episode, checked against the model's signature; None if there is none.

        Raises:
            DigestError: Its file is not what the manifest says.
            EpisodeError: It cannot be read or does not fit the model.
        """
        if self.manifest.golden is None:
            return None
        from stategate.contract.episode import Episode  # a session that only steps needs none

        file = next(f for f in self.manifest.files if f.path == self.manifest.golden)
        episode = Episode.load(self.read(file))
        episode.check(self.manifest.step, starts=True)
        if not episode.states:
            raise EpisodeError(
                "the golden episode holds no answers",
                remedy="export the bundle again",
            )
        return episode

    def undeclared_files(self) -> list[str]:
        """Files in the folder that the manifest does not list; they are never loaded."""
        listed = {file.path for file in self.manifest.all_files} | {MANIFEST, SEAL, SIGNATURE}
        return sorted(set(_names_in(self.path)) - listed)


@contextmanager
def _reading(folder: Path, name: str) -> Iterator[Path]:
    """Where a file of a bundle lies; what keeps it from being read becomes a sentence."""
    full = folder / name
    try:
        target = full.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise DigestError(
                "a file of the bundle is a link that leaves its folder",
                found=f"{name} -> {target}",
                remedy="do not use this bundle",
            )
        yield full
    except FileNotFoundError as problem:
        raise DigestError(
            "a file of the bundle is missing",
            found=f"no {name} in {folder}",
            remedy="copy the bundle again, or export it again",
        ) from problem
    except failures(OSError, RuntimeError) as problem:  # the latter: a circle of links
        raise DigestError(
            "a file of the bundle cannot be read",
            found=f"{name} in {folder}: {problem}",
            expected="a regular file",
            remedy="copy the bundle again, or export it again",
        ) from problem


def _check_digest(file: FileRef, digest: str, size: int) -> None:
    if digest != file.sha256:
        raise DigestError(
            f"{file.path} is not the file that was sealed",
            found=f"sha256 {digest} ({size} bytes)",
            expected=f"sha256 {file.sha256}",
            remedy="copy the bundle again, or export it again",
        )


def _folder_identity(path: Path) -> tuple[int, ...] | None:
    """What changes when another folder takes the place of one."""
    try:
        folder = path.stat()
    except failures(OSError):
        return None
    return folder.st_dev, folder.st_ino, folder.st_ctime_ns


def _names_in(folder: Path) -> Iterator[str]:
    """Everything in a folder but folders, as paths below it; links are not followed."""
    for above, folders, names in os.walk(folder):
        linked = (name for name in folders if Path(above, name).is_symlink())
        below = Path(above).relative_to(folder).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in (*names, *linked))


def write_bundle(path: str | Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle all or nothing: built under a hidden name, synced, and swapped into place.

    A process that dies meanwhile leaves the old bundle, or none, and the next one clears up.

    Args:
        path: Where the folder goes; an older bundle there is replaced.
        manifest: Must list exactly ``files``, with their digests.
        files: Content by path.

    Raises:
        BundleError: The manifest and the files disagree, or ``path`` holds something else.
    """
    path = Path(path).resolve()
    declared = {file.path: file.sha256 for file in manifest.all_files}
    actual = {name: sha256(data) for name, data in files.items()}
    if declared != actual:
        differing = sorted(set(declared.items()) ^ set(actual.items()))
        raise BundleError("the manifest and the files disagree", found=differing)
    refuse_to_replace(path)
    raw = canonical_json(manifest)
    make_folder(path.parent)
    with staged(path, folder=True) as new:
        for name, data in {**files, MANIFEST: raw}.items():
            write_synced(new / name, data)
        write_synced(new / SEAL, seal_of(sha256(raw)))
        for folder in (new, *(p for p in new.rglob("*") if p.is_dir())):
            sync_folder(folder)
        new.chmod(0o755)
        move_into_place(new, path)
    return Bundle(path, manifest, sha256(raw))


INSTALLED, SLOTS = "installed", ("a", "b")
"""Of an installation: its record, and the folders of its bundles."""


def refuse_to_replace(path: Path) -> None:
    """Raise unless a bundle can be put at ``path``: it is free, empty, or holds a whole bundle.

    Raises:
        BundleError: Something else is there, or nothing can be written there.
    """
    path = path.resolve()
    check_writable(path)
    if path.name in SLOTS and (path.parent / INSTALLED).is_file():
        raise BundleError(
            "a bundle that is installed is not written again: it would count as damaged",
            found=path,
            remedy=f"cp -r {shlex.quote(str(path))} copy; change the copy, and install that",
        )
    if Path.cwd().is_relative_to(path):
        raise BundleError(
            "a bundle cannot replace the folder that you are in",
            found=path,
            remedy="choose a folder below it, such as --out bundle",
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    stray = _strays(path)
    if stray:
        raise BundleError(
            "something that is not a bundle is in the way",
            found=f"{path}: {', '.join(stray[:5])}",
            expected="a new path, or a whole bundle without other files, which is replaced",
            remedy="choose another --out; stategate deletes nothing but its own bundles",
        )


def refuse_inside_bundle(path: Path, *, is_filled: bool = False) -> Path:
    """A path for a result, unless it is in a bundle: there it would replace a file or be a stray.

    Args:
        path: Of a file, or of a folder.
        is_filled: Whether files are put into the folder that is there, which is no bundle then.

    Raises:
        ResultError: It is.
    """
    for folder in (path / "a result" if is_filled else path).absolute().parents:
        if (folder / MANIFEST).is_file() and (folder / SEAL).is_file():
            raise ResultError(
                "a result cannot be written into a bundle: it would no longer be as it was sealed",
                found=path,
                expected=f"a place outside of {folder}",
                remedy="choose another --out; nothing was written",
            )
    return path


def _strays(path: Path) -> list[str]:
    """What in a folder is not a sealed bundle's; the manifest may be of any schema version.

    Read loosely, because a bundle that this build cannot open must still be replaceable.
    """
    try:
        raw = read_bounded(path / MANIFEST, RECORD_BYTES)
        sealed = read_bounded(path / SEAL, _SEAL_BYTES) == seal_of(sha256(raw))
    except failures(OSError):
        sealed = False
    if not sealed:
        return [f"no {MANIFEST} with its {SEAL}"]
    try:
        listed = set(_paths_in(msgspec.json.decode(raw)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [f"a {MANIFEST} that cannot be read"]
    return sorted(set(_names_in(path)) - listed - {MANIFEST, SEAL, SIGNATURE})


def _paths_in(record: Any) -> Iterator[str]:
    if isinstance(record, dict):
        if isinstance(record.get("path"), str):
            yield record["path"]
        record = list(record.values())
    if isinstance(record, list):
        for item in record:
            yield from _paths_in(item)


def seal_of(digest: str) -> bytes:
    """What `SEAL` holds."""
    return f"{digest}  {MANIFEST}\n".encode()
