"""The models that come with stategate, by name."""

from __future__ import annotations

import difflib

from stategate.contract.errors import ExportError
from stategate.models.zoo_entry import ZooEntry
from stategate.models.zoo_seeded import ENTRIES
from stategate.models.zoo_trained import TRAINED

ZOO: dict[str, ZooEntry] = {one.name: one for one in (*TRAINED, *ENTRIES)}


def entry(name: str) -> ZooEntry:
    """Look a model up.

    Raises:
        ExportError: It is not in the zoo.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO) or sorted(ZOO)
        raise ExportError(
            "the zoo has no such model",
            found=name,
            expected=" or ".join(near),
            remedy="list them with: stategate zoo; your own: path/to/module.py:factory",
        )
    return ZOO[name]
