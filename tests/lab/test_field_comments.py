"""A comment at a field is what the page of Python says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe", reason="mkdocstrings comes with make dev alone")

SOURCE = """
class Limits:
    low: float  # least of all
    # most of all,
    # by far
    high: float = 1.0
    documented: int  # no
    'A docstring.'
    silent: int

NUMBER = 1  # of the module
"""


def test_a_field_without_docstring_has_the_comment_after_it_or_before_it(tmp_path: Path) -> None:
    from lab.field_comments import FieldComments

    (tmp_path / "limits.py").write_text(SOURCE)
    extensions = griffe.load_extensions(FieldComments())
    module = griffe.load("limits", search_paths=[tmp_path], extensions=extensions)
    docs = {name: m.docstring and m.docstring.value for name, m in module["Limits"].members.items()}
    assert docs == {
        "low": "Least of all",
        "high": "Most of all, by far",
        "documented": "A docstring.",
        "silent": None,
    }
    assert module["NUMBER"].docstring is None
