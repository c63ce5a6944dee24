"""Every place where a module may keep something between two steps.

Attributes, buffers, containers and objects; the variables, defaults and globals of the functions
that its code refers to; hooks, classes, generators. Nothing is called and no property is asked: a
lazy module or a descriptor of the user's would run.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from enum import Enum
from operator import is_not, length_hint
from threading import Thread
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from stategate.export.memory.flow import Number
from stategate.models.lifting.blame import is_users

PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), Enum, Number)
_HOLDERS = (functools.partial, functools._lru_cache_wrapper)
_OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in every module
_HOOKS = tuple(name for name in _OWN if name.endswith("_hooks"))
_MANY = 50_000  # objects, after which the walk ends; the steps after another past still look
# Functions of transformers refer to registries of all its models: a walk of ten thousand objects
# that hold no memory of one. Attributes of its models and caches are looked at as those of others.
_REGISTRIES = f"site-packages{os.sep}transformers{os.sep}"
# Types of the standard library whose contents count; of all others they do not.
_LIBRARY = ("builtins", "collections", "types", "functools", "threading", "_thread", "_weakref")


class Opaque(NamedTuple):
    """What is known of an object that has nothing to look into."""

    kind: str  # its type
    shown: str  # where an iterator is; what others say that they hold, such as a `Decimal`


class Cell(NamedTuple):
    """Where a value can be taken out and another put in: ``owner[key]`` or ``owner.key``."""

    owner: Any
    key: Any
    is_item: bool = True

    def get(self) -> Any:
        """What it holds now."""
        return self.owner[self.key] if self.is_item else getattr(self.owner, self.key)

    def put(self, value: Any) -> None:
        """Give it another value."""
        if self.is_item:
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)

    @property
    def is_named(self) -> bool:
        """Whether it is a global, or an attribute of a class or a function."""
        is_scope = isinstance(self.owner, dict) and "__builtins__" in self.owner
        return is_scope or isinstance(self.owner, (type, FunctionType))

    def drop(self) -> None:
        """Remove it, as if it had never been there."""
        if self.is_item:
            del self.owner[self.key]
        else:
            delattr(self.owner, self.key)


class Contents(NamedTuple):
    """A container, or the attributes of an object, and what was in it."""

    owner: Any
    items: Any

    def restore(self) -> None:
        """Put in again what was in it, the very objects."""
        if isinstance(self.owner, dict):
            for key in dict.keys(self.owner) - self.items.keys():
                dict.__delitem__(self.owner, key)
            dict.update(self.owner, self.items)
        elif len(self.owner) != len(self.items) or any(map(is_not, self.owner, self.items)):
            self.owner.clear()
            self.owner.extend(self.items)


class Place(NamedTuple):
    """A place, and what it holds."""

    name: str  # dotted, below the module; or a class, function or file with what is inside
    value: Any  # a tensor, an array, something plain, or `Opaque`
    cell: Cell | None  # where another value can be put; None where that is impossible
    inside: bool = True  # an attribute of the module, which `lift` can take as a state


def places(
    module: nn.Module, without: Iterable[str] = (), contents: list[Contents] | None = None
) -> Iterator[Place]:
    """Every place that can be reached from a module, the nearest first.

    Attributes named in ``without`` are left out with all that is in them; the containers on the way
    are added to ``contents``.
    """
    left_out = set(without)
    visited: dict[int, object] = {}  # kept, so that no identity is used again
    queue: deque[Place] = deque([Place("", module, None)])
    while queue and len(visited) < _MANY:
        place = queue.popleft()
        value = place.value
        if place.name in left_out and place.inside:
            continue
        # The text of a traced program; a thread, such as a bar's, that runs whatever a step does.
        if isinstance(value, (fx.Graph, fx.Node, Thread)):
            continue
        if isinstance(value, (torch.Tensor, np.ndarray, np.generic, *PLAIN, Opaque)):
            yield place
        elif id(value) not in visited:
            visited[id(value)] = value
            if contents is not None:
                contents += _contents(value)
            queue.extend(_inside(place))


def _contents(value: Any) -> Iterator[Contents]:
    if isinstance(value, (dict, list, deque)):
        yield Contents(value, dict(dict.items(value)) if isinstance(value, dict) else list(value))
    elif isinstance(value, nn.Module):
        stores = (vars(value), value._buffers, value._parameters, value._modules)
        yield from (Contents(store, dict(store)) for store in stores)
    elif not isinstance(value, (type, ModuleType, FunctionType)) and not _is_library(type(value)):
        with suppress(TypeError):
            yield Contents(vars(value), dict(vars(value)))


def _is_library(kind: type) -> bool:
    root = kind.__module__.partition(".")[0]
    return root in sys.stdlib_module_names and root not in _LIBRARY


def _says_what_it_holds(kind: type) -> bool:
    """Whether a type of Python's own, such as array or Decimal, shows its value as text."""
    values = kind.__module__ in sys.stdlib_module_names and kind.__module__ not in _LIBRARY
    return (values or kind in (range, slice)) and any(
        "__repr__" in vars(base) for base in kind.__mro__[:-1]
    )


def _inside(place: Place) -> Iterator[Place]:
    name, value, _, inside = place
    if isinstance(value, nn.Module):
        yield from _of_module(name, value, inside)
    elif isinstance(value, (dict, MappingProxyType)):
        # A dict of a class of its own may load or compute what it is asked for.
        items = dict.items(value) if isinstance(value, dict) else value.items()
        for key, item in list(items):
            yield Place(f"{name}[{key!r}]", item, Cell(value, key), inside)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        changeable = isinstance(value, (list, deque))  # sets have no place to put a value back
        for i, item in enumerate(list(value)):
            yield Place(f"{name}[{i}]", item, Cell(value, i) if changeable else None, inside)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield Place(name, value.__func__, None, inside)
        if isinstance(value, MethodType):
            yield Place(name, value.__self__, None, inside)
    elif isinstance(value, property):
        yield from (Place(name, f, None, inside) for f in (value.fget, value.fset) if f)
    elif isinstance(value, functools.cached_property):
        yield Place(name, value.func, None, inside)
    elif isinstance(value, GeneratorType):
        frame = value.gi_frame
        # Where it stands is a memory too: each next() goes on from there.
        yield Place(name, Opaque("generator", str(frame and frame.f_lasti)), None, False)
        yield from _named(name, frame.f_locals if frame else {}, False)
    elif isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
        where = repr(value) if isinstance(value, itertools.count) else length_hint(value, -1)
        yield Place(name, Opaque(type(value).__name__, str(where)), None, False)
        yield from _referents(name, value)
    elif isinstance(value, _HOLDERS) or type(value).__name__ == "_lru_list_elem":
        yield from _referents(name, value)
    elif isinstance(value, ContextVar):
        yield Place(name, value.get(None), None, False)
    elif isinstance(value, weakref.ref):
        yield Place(name, value(), None, inside)
    elif _says_what_it_holds(type(value)):
        yield Place(name, Opaque(type(value).__name__, repr(value)), None, False)
    if not isinstance(value, (nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType)):
        yield from _of_object(name, value, inside)


def _of_module(name: str, module: nn.Module, inside: bool) -> Iterator[Place]:
    kinds: tuple[dict[str, Any], ...] = (
        module.__dict__["_parameters"],
        module.__dict__["_buffers"],
        {n: v for n, v in vars(module).items() if n not in _OWN},
        module.__dict__["_modules"],
    )
    for kind in kinds:
        store = vars(module) if kind is kinds[2] else kind
        for key, item in list(kind.items()):
            yield Place(f"{name}.{key}" if name else key, item, Cell(store, key), inside)
    for hooks in _HOOKS:
        for hook in list(getattr(module, hooks, {}).values()):
            yield Place(f"hook of {name or type(module).__name__}", hook, None, False)
    yield Place(type(module).__name__, type(module), None, False)


def _of_object(name: str, value: object, inside: bool) -> Iterator[Place]:
    kind = type(value)
    if _is_library(kind):
        return
    with suppress(TypeError):  # it has no attributes
        yield from _named(name, vars(value), inside)
    # Slots lie outside of vars(); each class of the hierarchy has its own.
    for base in kind.__mro__:
        for key, slot in vars(base).items():
            if isinstance(slot, MemberDescriptorType) and base.__module__ != "builtins":
                try:
                    item = slot.__get__(value)
                except AttributeError:
                    continue
                yield Place(f"{name}.{key}", item, Cell(value, key, False), inside)
    yield Place(kind.__name__, kind, None, False)


def _named(name: str, values: Mapping[str, object], inside: bool) -> Iterator[Place]:
    for key, item in list(values.items()):
        yield Place(f"{name}.{key}", item, Cell(values, key) if inside else None, inside)


def _referents(name: str, value: object) -> Iterator[Place]:
    """What an object of C holds: the results of a cache, what is iterated over.

    Lists and dicts of its own are looked into, and never changed.
    """
    for i, item in enumerate(gc.get_referents(value)):
        inner = item.values() if isinstance(item, dict) else item
        several = isinstance(item, (list, dict))
        for j, part in enumerate(inner if several else (item,)):
            if not isinstance(part, (type, ModuleType, str)):
                yield Place(f"{name}.{i}.{j}" if several else f"{name}.{i}", part, None, False)


def _of_class(kind: type) -> Iterator[Place]:
    for base in kind.__mro__:
        module = sys.modules.get(base.__module__)
        if not _is_theirs(getattr(module, "__file__", None) or _file_of(base)):
            continue
        for key, item in list(vars(base).items()):
            if key.startswith("__") and isinstance(item, (*PLAIN, tuple, dict)):
                continue  # what Python writes there
            yield Place(f"{base.__name__}.{key}", item, Cell(base, key, False), False)


def _file_of(kind: type) -> str:
    """The file of a class whose module is not among those that are loaded, as after runpy."""
    codes = (f.__code__ for f in vars(kind).values() if isinstance(f, FunctionType))
    return next((code.co_filename for code in codes), "<frozen>")


def _of_function(function: FunctionType) -> Iterator[Place]:
    if not _is_theirs(function.__code__.co_filename):
        if hasattr(function, "__wrapped__"):  # as torch.no_grad() does it
            yield Place(function.__qualname__, function.__wrapped__, None, False)
        return
    name = function.__qualname__.replace("<locals>.", "")
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            item = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        yield Place(f"{name}: variable {key}", item, Cell(cell, "cell_contents", False), False)
    count = function.__code__.co_argcount
    defaults = function.__defaults__ or ()
    arguments = function.__code__.co_varnames[count - len(defaults) : count]
    for key, item in zip(arguments, defaults, strict=True):
        yield Place(f"{name}: default of {key}", item, None, False)
    for key, item in (function.__kwdefaults__ or {}).items():
        yield Place(f"{name}: default of {key}", item, None, False)
    for key, item in vars(function).items():
        yield Place(f"{name}.{key}", item, Cell(function, key, False), False)
    # Of the globals those that the code names; a file may hold thousands of others.
    names = _names_in(function.__code__)
    scope = function.__globals__
    for key in names & scope.keys():
        if isinstance(scope[key], ModuleType):
            yield from _of_file(scope[key], names)
        else:
            yield Place(f"global {key}", scope[key], Cell(scope, key), False)


def _of_file(module: ModuleType, names: set[str]) -> Iterator[Place]:
    """What of another file of the user's is named in a function."""
    if _is_theirs(getattr(module, "__file__", None) or "<frozen>"):
        scope = vars(module)
        for key in names & scope.keys():
            yield Place(f"global {module.__name__}.{key}", scope[key], Cell(scope, key), False)


def _is_theirs(file: str) -> bool:
    """Whether code is the user's; what was typed or made by exec has no file."""
    if _REGISTRIES in file:
        return False
    return is_users(file) or (file.startswith("<") and not file.startswith("<frozen"))


def _names_in(code: CodeType) -> set[str]:
    inner = (_names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*inner)
