"""Configurations as data: each field is held against its annotation, then against the rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from stategate.contract.errors import SpecError


class Rule(NamedTuple):
    """What one field must be beside its annotation, and whether it is."""

    field: str
    holds: bool
    expected: str
    remedy: str | None = None


class Configuration:
    """Base of the frozen dataclasses that say what a cell is, and nothing of its weights.

    A field is a size (``int``, at least 1), a finite number (``float``), a switch (``bool``), a
    choice (``Literal``), one of these or None, or a configuration. What the cell cannot express
    raises `SpecError` with the name of the field.
    """

    __slots__ = ()

    def rules(self) -> Iterable[Rule]:
        """What else must hold; the first rule that does not is the error."""
        return ()

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]
            self._check(Rule(field.name, *_fits(getattr(self, field.name), hints[field.name])))
        for rule in self.rules():
            self._check(rule)

    def _check(self, rule: Rule) -> None:
        if not rule.holds:
            raise SpecError(
                f"{type(self).__name__}.{rule.field} must not be {getattr(self, rule.field)!r}",
                expected=rule.expected,
                remedy=rule.remedy or f"choose another {rule.field}",
            )


def _fits(value: Any, hint: Any) -> tuple[bool, str]:
    """Whether a value is what its annotation says, and what that is in words."""
    if get_origin(hint) is UnionType and NoneType in get_args(hint):
        if value is None:
            return True, ""
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and number and value >= 1, "an integer, 1 or more"
    if hint is float:
        return number and math.isfinite(value), "a finite number"
    if hint is bool:
        return isinstance(value, bool), "True or False"
    if isinstance(hint, type):
        return isinstance(value, hint), f"a {hint.__name__}"
    return value in get_args(hint), " or ".join(map(repr, get_args(hint)))
