"""Rows of data: one TOML file a thing, in a folder beside this module."""

from __future__ import annotations

import difflib
import sys
from importlib import resources
from typing import TypeVar

import msgspec

from stategate.contract.errors import MissingDependencyError, TargetError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ImportError as missing:
        raise MissingDependencyError("tomli", "export") from missing

Row = TypeVar("Row")


def row_names(folder: str) -> list[str]:
    """Names of all rows in a folder, sorted."""
    files = (resources.files("stategate.targets") / folder).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files)


def read_row(folder: str, name: str, kind: str, shape: type[Row]) -> Row:
    """Read one row.

    Args:
        folder: Where the rows lie.
        name: Which one.
        kind: What a row is, for the message of an error.
        shape: What it is read into, strictly.

    Raises:
        TargetError: It does not exist, or contradicts itself.
    """
    known = row_names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise TargetError(f"unknown {kind}", found=name, expected=" or ".join(near))
    raw = (resources.files("stategate.targets") / folder / f"{name}.toml").read_text()
    try:
        return msgspec.convert(tomllib.loads(raw), shape)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as problem:
        raise TargetError(f"the {kind} {name} is broken", found=str(problem)) from problem
