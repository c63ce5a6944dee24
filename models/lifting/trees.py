"""Objects that hold tensors, opened like dicts: dataclasses, and the caches of transformers.

torch's pytree looks into tuples, lists, dicts and deques, and takes any other object for a leaf.
Here such an object is a branch whose children are its attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stategate.contract.errors import TraceError

Value = Any
"""A tensor or a number, or tuples, lists, dicts, deques and objects of them."""

_MANY = 10_000  # objects, after which others are leaves: what names everything is no memory
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.Size)


class Leaf(NamedTuple):
    """A leaf, and the keys on the way to it."""

    keys: tuple[Any, ...]
    value: Value

    @property
    def path(self) -> str:
        """The way to it as it is written, such as ``.layers[0].keys``."""
        return pytree.keystr(self.keys)

    @property
    def is_constant(self) -> bool:
        """Whether it is no tensor and lies in an object, as the size of a cache does."""
        in_object = any(type(key) is _Attribute for key in self.keys)
        return in_object and not isinstance(self.value, (Tensor, np.ndarray))


@dataclass
class _Opened:
    """An object: its class, and what its attributes hold."""

    kind: type
    attributes: dict[str, Value]


@dataclass(frozen=True)
class _Above:
    """Stands for the object so many levels up: one that names what it is part of."""

    levels: int


class _Attribute(pytree.GetAttrKey):
    """The key of an attribute, which is written with a dot."""


pytree.register_pytree_node(
    _Opened,
    lambda node: ([*node.attributes.values()], (node.kind, *node.attributes)),
    lambda values, form: _Opened(form[0], dict(zip(form[1:], values, strict=True))),
    flatten_with_keys_fn=lambda node: (
        [(_Attribute(name), value) for name, value in node.attributes.items()],
        (node.kind, *node.attributes),
    ),
)


def flattened(value: Value) -> tuple[list[Leaf], pytree.TreeSpec]:
    """Leaves in order, and the form that `rebuilt` takes."""
    leaves, form = pytree.tree_flatten_with_path(_opened(value, (), [_MANY]))
    return [Leaf(tuple(keys), leaf) for keys, leaf in leaves], form


def rebuilt(leaves: list[Value], form: pytree.TreeSpec) -> Value:
    """The value that has these leaves; objects are made anew, without their ``__init__``."""
    return _closed(pytree.tree_unflatten(leaves, form), ())


def leaves_of(value: Value) -> list[Value]:
    """All leaves, those inside of objects too."""
    return [leaf.value for leaf in flattened(value)[0]]


def mapped(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """The same containers and objects anew, with other tensors."""
    leaves, form = flattened(value)
    return rebuilt([function(v) if isinstance(v, Tensor) else v for _, v in leaves], form)


def is_same(one: Value, other: Value) -> bool:
    """Whether two constants are the same, as far as that can be known."""
    if isinstance(one, _PLAIN) or isinstance(other, _PLAIN):
        return type(one) is type(other) and bool(one == other)
    return type(one) is type(other)


def _opened(value: Value, above: tuple[int, ...], budget: list[int]) -> Value:
    def opened(leaf: Value) -> Value:
        attributes = _attributes(leaf)
        if id(leaf) in above:
            return _Above(len(above) - above.index(id(leaf)))
        if attributes is None or not budget[0]:
            return leaf
        budget[0] -= 1
        path = (*above, id(leaf))
        return _Opened(type(leaf), {n: _opened(v, path, budget) for n, v in attributes.items()})

    return pytree.tree_map(opened, value)


def _attributes(leaf: Value) -> dict[str, Value] | None:
    """What an object holds by name; None for what is no plain holder of values."""
    kind = type(leaf)
    is_code = isinstance(leaf, (Tensor, nn.Module, type, Mapping, Enum)) or callable(leaf)
    root = kind.__module__.partition(".")[0]
    if is_code or (root in {*sys.stdlib_module_names, "torch", "numpy"} - {"__main__"}):
        return dict(vars(leaf)) if kind is SimpleNamespace else None
    try:
        object.__new__(kind)  # as `_closed` makes it; what is written in C refuses
    except TypeError:
        return None
    slots = [n for base in kind.__mro__ for n in _names(vars(base).get("__slots__", ()))]
    values = {name: getattr(leaf, name) for name in slots if hasattr(leaf, name)}
    values |= getattr(leaf, "__dict__", {})
    return {name: item for name, item in values.items() if name not in ("__dict__", "__weakref__")}


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _closed(value: Value, above: tuple[Value, ...]) -> Value:
    def closed(node: Value) -> Value:
        if isinstance(node, _Above):
            return above[-node.levels]
        if not isinstance(node, _Opened):
            return node
        copy: Value = object.__new__(node.kind)
        for name, item in node.attributes.items():
            # As for any class, of a frozen dataclass too.
            object.__setattr__(copy, name, _closed(item, (*above, copy)))
        return copy

    return pytree.tree_map(closed, value, is_leaf=lambda node: isinstance(node, _Opened))


class Inputs:
    """Example inputs, some of which may be dicts: a tensor for each name, and the way back.

    The parts of a dict are named by their keys, ``camera_rgb`` for ``obs["camera"]["rgb"]``, with
    the argument's name in front where two would be called alike.
    """

    def __init__(self, example: Mapping[str, Value]) -> None:
        leaves, self._form = flattened(dict(example))
        paths = [[_word(key) for key in leaf.keys] for leaf in leaves]
        short = ["_".join(path[1:] or path) for path in paths]
        names = [
            name if short.count(name) == 1 else "_".join(path)
            for name, path in zip(short, paths, strict=True)
        ]
        for name, leaf in zip(names, leaves, strict=True):
            if not isinstance(leaf.value, Tensor) or names.count(name) > 1:
                is_tensor = isinstance(leaf.value, Tensor)
                raise TraceError(
                    f"two example inputs would both be called {name!r}"
                    if is_tensor
                    else f"the example input {name!r} is no tensor",
                    found=f"{leaf.path}: {type(leaf.value).__name__}",
                    expected="a tensor, or dicts of tensors, of different names",
                    remedy="rename a key"
                    if is_tensor
                    else "bind what never changes in a module of your own around this one",
                )
        self.tensors = {n: leaf.value for n, leaf in zip(names, leaves, strict=True)}

    def arguments(self, tensors: Mapping[str, Tensor]) -> dict[str, Value]:
        """The arguments of ``forward`` that hold these tensors."""
        return dict(rebuilt([tensors[name] for name in self.tensors], self._form))


def _word(key: Any) -> str:
    """The key of a dict, the place in a list, the name of an attribute."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
