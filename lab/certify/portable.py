"""A bundle's C in its plain form: C99 alone, weights as an array."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from stategate.contract import Bundle
from stategate.contract.c_library import SOURCE_FOLDER

DEFINE = "-DSTATEGATE_PORTABLE"
_NOT_NEEDED = ("python.c", "black_box.c")  # what no session needs


def portable_source(bundle: Bundle, folder: Path) -> list[Path]:
    """The C of a bundle's session in a folder that is there, and the sources in it by name."""
    for path in sorted((bundle.path / SOURCE_FOLDER).glob("*.[ch]")):
        if path.name not in _NOT_NEEDED:
            shutil.copy(path, folder)
    raw = (bundle.path / SOURCE_FOLDER / "weights.bin").read_bytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 8), "<u8")
    lines = (
        ", ".join(f"0x{word:016x}u" for word in words[at : at + 4].tolist())
        for at in range(0, len(words), 4)
    )
    text = "#include <stdint.h>\nextern const uint64_t stategate_weight_words[];\n"
    text += "const uint64_t stategate_weight_words[] = {\n" + ",\n".join(lines) + "\n};\n"
    (folder / "weights.c").write_text(text)
    return sorted(path for path in folder.glob("*.c") if path.name != "weights.c")
