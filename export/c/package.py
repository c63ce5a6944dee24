"""A bundle's C as a package of CMake and pkg-config."""

from __future__ import annotations

from collections.abc import Iterable

from stategate.common.compiler import MATHS
from stategate.contract.c_library import ABI
from stategate.export.c.names import filled, readable

_CONFIG = """\
# For find_package: compiles the C of this folder with the project that asks.
if(NOT TARGET stategate::@NAME@)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}"
    "${CMAKE_CURRENT_BINARY_DIR}/stategate_@NAME@" EXCLUDE_FROM_ALL)
endif()
"""


def package_name(model: str) -> str:
    """What stands behind ``stategate_`` in the names of a model's package."""
    return readable(model).lower()  # CMake finds files of packages in small letters


def package_of(model: str, sources: Iterable[str]) -> dict[str, bytes]:
    """Files that make a package of C source, by name."""
    names = sorted(sources)
    parts = {
        "NAME": package_name(model),
        "FLAGS": " ".join(MATHS),
        # What CPython alone calls is in the bundle's own library.
        "SOURCES": " ".join(n for n in names if n.endswith(".c") and n != "python.c"),
        "HEADERS": " ".join(n for n in names if n.endswith((".h", ".hpp"))),
        "VERSION": str(ABI),
    }
    texts = {
        "CMakeLists.txt": filled("CMakeLists.txt.in", **parts),
        "stategate.pc.in": filled("stategate.pc.in", **parts),
        f"stategate_{parts['NAME']}-config.cmake": _CONFIG.replace("@NAME@", parts["NAME"]),
    }
    return {file: text.encode() for file, text in texts.items()}
