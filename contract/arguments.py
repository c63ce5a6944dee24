"""Arguments of the wrong kind are refused in a sentence, by the annotations of a call."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from numbers import Real
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

from stategate.contract.errors import SpecError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_SHOWN = 80  # letters of a value that a message shows


def checks_kinds(call: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Refuse keywords, ``out``, ``into``, ``engine`` that are not of their annotation's kind.

    Numbers by themselves and recordings are left to those who read them, and say more.
    """
    signature = inspect.signature(call)
    names = {"out", "into", "engine"} | {
        n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    names -= {"episode", "progress"}
    texts = {n: p.annotation for n, p in signature.parameters.items() if n in names}

    @wraps(call)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in texts:
                _check(call, name, value, texts[name])
        return call(*args, **kwargs)

    return checked


def check_kinds(record: Any) -> None:
    """Refuse fields of a dataclass that are not of the kind of their annotation; numbers pass."""
    for field in fields(record):
        _check(type(record), field.name, getattr(record, field.name), field.type)


def _check(owner: object, name: str, value: object, annotation: object) -> None:
    kind = _kind(owner, annotation)
    if kind in (int, int | None, float, float | None) or _is_a(value, kind):
        return
    text = repr(value)
    raise SpecError(
        f"{name} is of the wrong kind",
        found=f"{text[:_SHOWN]}{'...' * (len(text) > _SHOWN)}, "
        f"a value of type {type(value).__name__}",
        expected=_in_words(kind, annotation),
    )


def _in_words(kind: Any, annotation: object) -> str:
    """What may be given: the words themselves, and a class where the annotation is an alias."""
    if get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, get_args(kind)))
    return kind.__name__ if inspect.isclass(kind) else str(annotation)


def _kind(owner: object, annotation: object) -> Any:
    """What an annotation says; anything where it names an alias that is itself only text."""
    hint = SimpleNamespace(__annotations__={"kind": annotation})
    try:
        return typing.get_type_hints(hint, vars(inspect.getmodule(owner)))["kind"]
    except (NameError, TypeError):
        return Any


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is of a kind, as far as that is seen without using it up."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (typing.Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is typing.Literal:
        return isinstance(value, str)  # which words there are is said elsewhere
    if origin is tuple and Ellipsis not in parts:
        if not isinstance(value, tuple | list) or len(value) != len(parts):
            return False
        return all(_is_a(each, part) for each, part in zip(value, parts, strict=True))
    if origin is not None and inspect.isclass(origin):
        if issubclass(origin, Mapping):
            return isinstance(value, Mapping) and all(
                _is_a(k, parts[0]) and _is_a(v, parts[1]) for k, v in value.items()
            )
        is_text = isinstance(value, str) and issubclass(origin, Iterable)
        return is_text or isinstance(value, tuple if origin is tuple else origin)
    if kind is Any:
        return True
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in (int, float):
        return isinstance(value, Real) or hasattr(value, "__index__")
    return not inspect.isclass(kind) or isinstance(value, kind)
