"""A bundle's C in its plain form: C99 alone, weights as an array."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.builds import write_weights
from stategate.contract import Bundle
from stategate.contract.c_library import SOURCE_FOLDER

_NOT_NEEDED = ("python.c", "black_box.c")  # what no session needs


def portable_source(bundle: Bundle, folder: Path) -> list[Path]:
    """The C of a bundle's session in a folder that is there, and the sources in it by name."""
    source = bundle.path / SOURCE_FOLDER
    for path in sorted(source.glob("*.[ch]")):
        if path.name not in _NOT_NEEDED:
            shutil.copy(path, folder)
    write_weights(source, folder)
    return sorted(path for path in folder.glob("*.c") if path.name != "weights.c")
