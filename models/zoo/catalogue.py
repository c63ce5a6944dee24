"""The models that come with stategate, by name."""

from __future__ import annotations

from stategate.models.zoo.entry import ZooEntry
from stategate.models.zoo.names import unknown_model
from stategate.models.zoo.seeded import ENTRIES
from stategate.models.zoo.trained import TRAINED

ZOO: dict[str, ZooEntry] = {one.name: one for one in (*TRAINED, *ENTRIES)}


def entry(name: str) -> ZooEntry:
    """Look a model up.

    Raises:
        ExportError: It is not in the zoo.
    """
    if name not in ZOO:
        raise unknown_model(name)
    return ZOO[name]
