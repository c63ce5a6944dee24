"""Data that ships with the package: TOML files, read strictly into records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

import msgspec

from stategate.contract.errors import MissingDependencyError, TargetError
from stategate.contract.names import close_names

if sys.version_info >= (3, 11):
    import tomllib

Table = TypeVar("Table")


def table_names(folder: str) -> list[str]:
    """Names of the files in a folder of this room, sorted."""
    files = (resources.files("stategate.targets") / folder).iterdir()
    # An editor leaves hidden files and copies beside the one that it writes.
    names = [f.name for f in files if f.name.endswith(".toml") and not f.name.startswith(".")]
    return sorted(name.removesuffix(".toml") for name in names)


def read_table(folder: str, name: str, kind: str, shape: type[Table]) -> Table:
    """Read one file of a folder of this room, see `read_toml`."""
    names = table_names(folder)
    if name not in names:
        near = close_names(name, names)
        raise TargetError(
            f"unknown {kind}",
            found=name,
            expected=" or ".join(near or names),
            remedy="list them with: stategate device targets" if kind == "target" else None,
        )
    return read_toml("stategate.targets", f"{folder}/{name}.toml", f"the {kind} {name}", shape)


def read_toml(room: str, file: str, what: str, shape: type[Table]) -> Table:
    """Read a file of any room; a value ``"unknown"`` is None in what it returns."""
    return parse_toml(resources.files(room).joinpath(file).read_bytes(), file, what, shape)


def parse_toml(raw: bytes, file: str, what: str, shape: type[Table]) -> Table:
    """The same of a file's bytes; see `read_toml`."""
    loads = _loads()
    try:
        return msgspec.convert(_without_unknowns(loads(raw.decode())), shape)
    except (msgspec.ValidationError, ValueError) as problem:  # the TOML reader's is a ValueError
        raise TargetError(f"{what} is broken", found=f"{file}: {problem}") from problem


def _loads() -> Callable[[str], dict[str, Any]]:
    """The TOML reader, only when a file is read: devices with Python 3.10 may have none."""
    if sys.version_info >= (3, 11):
        return tomllib.loads
    try:
        import tomli
    except ImportError as missing:
        raise MissingDependencyError("tomli", "export") from missing
    return tomli.loads


def _without_unknowns(value: Any) -> Any:
    """The same with None for every ``"unknown"``, because TOML has no word for that."""
    if isinstance(value, dict):
        return {key: _without_unknowns(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_unknowns(inner) for inner in value]
    return None if value == "unknown" else value
