"""The models that come with stategate, by name."""

from __future__ import annotations

from stategate.models.zoo_entry import ZooEntry
from stategate.models.zoo_names import unknown_model
from stategate.models.zoo_seeded import ENTRIES
from stategate.models.zoo_trained import TRAINED

ZOO: dict[str, ZooEntry] = {one.name: one for one in (*TRAINED, *ENTRIES)}


def entry(name: str) -> ZooEntry:
    """Look a model up.

    Raises:
        ExportError: It is not in the zoo.
    """
    if name not in ZOO:
        raise unknown_model(name)
    return ZOO[name]
