"""Storage media that are known by name: read and list.

The rows in ``media/`` are few on purpose: a row says where its figures come from, and names those
that are assumptions. A medium of your own is given by its figures instead of a name.
"""

from __future__ import annotations

from stategate.common.flash import Storage
from stategate.targets.toml_tables import read_table, table_names

_FOLDER = "media"


def storage_names() -> list[str]:
    """Names of all known storage media."""
    return table_names(_FOLDER)


def load_storage(name: str) -> Storage:
    """Read one medium."""
    return read_table(_FOLDER, name, "storage", Storage)
