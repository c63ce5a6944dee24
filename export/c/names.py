"""Names of tensors in C, which must not be those of keywords, macros or other tensors.

A name comes from whoever made the graph. None of its characters reaches the C unchanged but
letters, digits and underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import onnx

_LONGEST = 48  # C99 5.2.4.1: 63 characters count; a number may follow
# Keywords and alternative tokens of C11, C23 and C++20, and macros in small letters: of compilers
# for their systems, of <stdbool.h>, <complex.h>, <errno.h>, <assert.h>, <stdio.h> and <iso646.h>.
_RESERVED = frozenset(
    """
    I alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t
    char32_t char8_t class compl complex concept const const_cast consteval constexpr constinit
    continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum
    errno explicit export extern false float for fortran friend goto i386 if imaginary inline int
    linux long mips mutable namespace new noexcept noreturn not not_eq nullptr operator or or_eq
    private protected public register reinterpret_cast requires restrict return short signed
    sizeof static static_assert static_cast stderr stdin stdout struct sun switch template this
    thread_local throw true try typedef typeid typename typeof typeof_unqual union unix unsigned
    using virtual void volatile while xor xor_eq
    """.split()  # noqa: SIM905
)


def members(tensors: Iterable[str]) -> dict[str, str]:
    """Members of one struct, each with a name of its own.

    A name that C allows stays what it is. Names in capitals, which look like macros, and those that
    end like the types of ``<stdint.h>`` get a prefix.
    """
    wishes = {tensor: _member(tensor) for tensor in tensors}
    names: dict[str, str] = {}
    # What stays as it is goes first, so that no other takes its name.
    for tensor in sorted(wishes, key=lambda tensor: wishes[tensor] != tensor):
        name, number = wishes[tensor], 1
        while name in names.values():
            number += 1
            name = f"{wishes[tensor]}_{number}"
        names[tensor] = name
    return names


def _member(tensor: str) -> str:
    plain = readable(tensor)
    like_a_macro = len(plain) > 1 and plain == plain.upper()
    reserved = like_a_macro or plain.endswith("_t") or plain in _RESERVED
    if plain[:1].isalpha() and not reserved:
        return plain
    return f"t_{plain}"


def with_plain_names(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """A copy of a graph in which every tensor has a number and nothing else has a name."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names: dict[str, str] = {"": ""}

    def name_of(tensor: str) -> str:
        return names.setdefault(tensor, f"{prefix}_{len(names)}_{readable(tensor)}")

    graph = model.graph  # of one node, which has no graph inside
    graph.doc_string = ""
    for tensor in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        tensor.name, tensor.doc_string = name_of(tensor.name), ""
    for node in graph.node:
        node.name, node.doc_string = "", ""
        node.input[:] = map(name_of, node.input)
        node.output[:] = map(name_of, node.output)
    return model


def readable(tensor: str) -> str:
    """A name with its letters, digits and underscores alone, and not too long."""
    return re.sub(r"\W", "_", tensor, flags=re.ASCII)[:_LONGEST]


def filled(template: str, **parts: object) -> str:
    """A file of this folder with each ``@NAME@`` replaced, one after the other."""
    text = Path(__file__).with_name(template).read_text()
    for name, part in parts.items():
        text = text.replace(f"@{name}@", str(part))
    return text
