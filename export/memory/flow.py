"""Where the values that a step begins with go to: through tensors, and into Python."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Names = frozenset[str]
NONE: Names = frozenset()
_REPLACES = {"aten::copy_", "aten::fill_", "aten::zero_"}


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, every tensor carries the names of the sources that it was computed from.

    Names belong to storages, so that views and writes in place pass them on.
    """

    def __init__(self, sources: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[str] = set()  # names of what became a Python number: it may decide anything
        self._names: dict[int, Names] = {}
        self._alive: list[object] = []  # so that no storage has the address of an older one
        self._written: set[int] = set()
        # Storages replaced in part: which elements, and the names of what replaced them.
        self._replacing: dict[int, tuple[torch.Tensor, Names]] = {}
        for name, tensor in sources:
            self._add(tensor, frozenset([name]) | self.names_of(tensor))

    def names_of(self, *values: object) -> Names:
        """What these were computed from; containers are looked into."""
        tensors = (t for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor))
        return NONE.union(*(self._names.get(_key(t), NONE) for t in tensors))

    def was_written(self, value: object) -> bool:
        """Whether it is a tensor that was written in place, with the same values or with others."""
        return isinstance(value, torch.Tensor) and _key(value) in self._written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = self.names_of(args, kwargs)
        schema = func._schema
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                tensors = [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)]
                if schema.name in _REPLACES and _is_plain(value):
                    # What is replaced is forgotten: `x.copy_(y)` does not depend on x.
                    names = self._replaced(value, self.names_of(args[1:], kwargs))
                else:
                    for tensor in tensors:
                        self._replacing.pop(_key(tensor), None)
                for tensor in tensors:
                    self._written.add(_key(tensor))
                    self._add(tensor, names)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, names | self.names_of(leaf))  # it may be a view of an older one
            elif leaf is not None:  # a number, as of item(): Python may do anything with it
                self.read |= names
        return result

    def _replaced(self, part: torch.Tensor, new: Names) -> Names:
        """Names of a storage, a part of which is replaced; the old ones go with the last part."""
        elements = part.untyped_storage().nbytes() // part.element_size()
        done, names = self._replacing.pop(_key(part), (torch.zeros(0), NONE))
        if len(done) != elements:
            done, names = torch.zeros(elements, dtype=torch.bool), NONE
        torch.as_strided(done, part.shape, part.stride(), part.storage_offset()).fill_(True)
        names |= new
        if done.all():
            return names
        self._replacing[_key(part)] = done, names
        return self.names_of(part) | names

    def _add(self, tensor: torch.Tensor, names: Names) -> None:
        self._names[_key(tensor)] = names
        self._alive.append(tensor.untyped_storage())


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_plain(tensor: object) -> bool:
    """Whether it lies in memory as numbers that can be counted."""
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided


class Number:
    """Stands for a Python number that a module keeps, and notes whether anything comes of it.

    Arithmetic gives another of the kind: a count that is only counted on decides nothing. To be
    compared, converted, used as an index or handed to torch is a use, which adds the name to
    ``uses``.
    """

    def __init__(self, value: int | float | complex, name: str, uses: set[str]) -> None:
        self.value, self._name, self._uses = value, name, uses

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)  # so that isinstance() takes it for a number

    def use(self) -> Any:
        """The number itself, for something that may depend on it."""
        self._uses.add(self._name)
        return self.value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(
            lambda leaf: leaf.use() if type(leaf) is Number else leaf, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _arithmetic(operation: Any, reverse: bool) -> Any:
    def apply(self: Number, other: Any = None) -> Any:
        if type(other) is Number:
            other = other.value
        elif not isinstance(other, (int, float, complex)):
            return NotImplemented
        values = (other, self.value) if reverse else (self.value, other)
        return Number(operation(*values), self._name, self._uses)

    return apply


def _use(name: str) -> Any:
    def apply(self: Number, *others: Any) -> Any:
        numbers = (other.use() if type(other) is Number else other for other in others)
        return getattr(type(self.value), name)(self.use(), *numbers)

    return apply


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_USES = """eq ne lt le gt ge bool int float complex index hash str repr format neg pos abs round
trunc floor ceil divmod rdivmod and or xor lshift rshift invert"""
for _name in _ARITHMETIC:
    setattr(Number, f"__{_name}__", _arithmetic(getattr(operator, _name), reverse=False))
    setattr(Number, f"__r{_name}__", _arithmetic(getattr(operator, _name), reverse=True))
for _name in _USES.split():
    setattr(Number, f"__{_name}__", _use(f"__{_name}__"))
