"""Comments at the fields of a class are their documentation, on the pages of mkdocstrings too."""

from __future__ import annotations

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives a field without a docstring the comment that stands at it."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Take the comment after the field, or else the lines of comment before it."""
        in_class = attr.parent is not None and attr.parent.is_class
        if attr.docstring or not in_class or attr.lineno is None or attr.endlineno is None:
            return
        lines = attr.lines_collection[attr.filepath]  # type: ignore[index]
        text = lines[attr.endlineno - 1].partition("  # ")[2]
        for line in reversed(lines[: attr.lineno - 1] if not text else []):
            if not line.strip().startswith("# "):
                break
            text = f"{line.strip()[2:]} {text}".strip()
        if text:
            attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)
