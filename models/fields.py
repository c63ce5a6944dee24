"""Configurations as data: every field held against its annotation, and refused by its name."""

from __future__ import annotations

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from stategate.contract.errors import ModelConfigError


def check_fields(config: Any) -> None:
    """Hold the fields of a configuration against their annotations.

    Args:
        config: A dataclass whose fields are sizes (``int``, at least 1), finite numbers
            (``float``), switches (``bool``), choices (``Literal``), one of these or None, or
            configurations of their own.

    Raises:
        ModelConfigError: A field is not what it says.
    """
    hints = get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value, hint = getattr(config, name), hints[name]
        if get_origin(hint) is UnionType and NoneType in get_args(hint):
            if value is None:
                continue
            hint = next(kind for kind in get_args(hint) if kind is not NoneType)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint is int:
            fits = isinstance(value, int) and number and value >= 1
            expected = "an integer, 1 or more"
        elif hint is float:
            fits, expected = number and math.isfinite(value), "a finite number"
        elif hint is bool:
            fits, expected = isinstance(value, bool), "True or False"
        elif isinstance(hint, type):
            fits, expected = isinstance(value, hint), f"a {hint.__name__}"
        else:
            fits, expected = value in get_args(hint), " or ".join(map(repr, get_args(hint)))
        if not fits:
            raise refused(config, name, expected)


def refused(config: Any, name: str, expected: str, remedy: str | None = None) -> ModelConfigError:
    """The error for one field.

    Args:
        config: The configuration.
        name: Of the field.
        expected: What it may be.
        remedy: What to do, where there is more to say than that.
    """
    return ModelConfigError(
        f"{type(config).__name__}.{name} cannot be {getattr(config, name)!r}",
        expected=expected,
        remedy=remedy or f"choose another {name}",
    )
