"""Rows of data: one TOML file a thing, in a folder beside this module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

import msgspec

from stategate.contract.errors import MissingDependencyError, TargetError
from stategate.contract.names import close_names

Row = TypeVar("Row")


def row_names(folder: str) -> list[str]:
    """Names of all rows in a folder, sorted."""
    files = (resources.files("stategate.targets") / folder).iterdir()
    found = [f.name for f in files if f.name.endswith(".toml") and not f.name.startswith(".")]
    return sorted(name.removesuffix(".toml") for name in found)


def read_row(folder: str, name: str, kind: str, shape: type[Row]) -> Row:
    """Read one row; a value ``"unknown"`` is None in what it returns.

    Args:
        folder: Where the rows lie.
        name: Which one.
        kind: What a row is, for the message of an error.
        shape: What it is read into, strictly.

    Raises:
        TargetError: It does not exist, or contradicts itself.
        MissingDependencyError: Python 3.10 has no TOML reader, and tomli is not installed.
    """
    known = row_names(folder)
    if name not in known:
        near = close_names(name, known)
        raise TargetError(
            f"unknown {kind}",
            found=name,
            expected=" or ".join(near or known),
            remedy="list them with: stategate targets" if kind == "target" else None,
        )
    raw = (resources.files("stategate.targets") / folder / f"{name}.toml").read_text()
    loads, broken = _toml()
    try:
        return msgspec.convert(_told(loads(raw)), shape)
    except (msgspec.ValidationError, broken) as problem:
        raise TargetError(
            f"the {kind} {name} is broken", found=f"{folder}/{name}.toml: {problem}"
        ) from problem


def _toml() -> tuple[Callable[[str], dict[str, Any]], type[ValueError]]:
    """The TOML reader and its error; only when a row is read, for devices import this too."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as missing:
            raise MissingDependencyError("tomli", "export") from missing
    return tomllib.loads, tomllib.TOMLDecodeError


def _told(value: Any) -> Any:
    """The same with None for every ``"unknown"``, which TOML has no word for."""
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_told(inner) for inner in value]
    return None if value == "unknown" else value
