"""Tensors as places: ``ring[:, pointer]`` where the pointer is a number in a tensor.

Python makes an integer of it, which torch.export cannot follow. Here it stays a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class TensorsAsPlaces(TorchFunctionMode):
    """While it is on, a place given by a tensor of no axes is gathered from, or written to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _get(*args)
        if func is Tensor.__setitem__:
            return _set(*args)
        return func(*args, **(kwargs or {}))


# The mode is off while it handles an operation, so an index with two pointers comes back here.
def _get(tensor: Tensor, index: Any) -> Tensor:
    if (pointer_in := _pointer(tensor, index)) is None:
        return tensor[index]
    axis, pointer, rest = pointer_in
    return _get(tensor.index_select(axis, pointer), rest)


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    if (pointer_in := _pointer(tensor, index)) is None:
        tensor[index] = value
        return
    axis, pointer, rest = pointer_in
    part = tensor.index_select(axis, pointer)
    _set(part, rest, value)
    tensor.index_copy_(axis, pointer, part)


def _pointer(tensor: Tensor, index: Any) -> tuple[int, Tensor, tuple[Any, ...]] | None:
    """The first pointer in an index: its axis, itself, and the index into what it chooses."""
    index = index if isinstance(index, tuple) else (index,)
    # Lists and larger tensors choose several places, and torch.export can follow those.
    simple = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(part, simple) or _is_pointer(part) for part in index):
        return None
    axes = sum(part is not None and part is not Ellipsis for part in index)
    axis = 0
    for place, part in enumerate(index):
        if _is_pointer(part):
            part = part.to(torch.int64)
            part = torch.where(part < 0, part + tensor.shape[axis], part)  # counted from the end
            return axis, part.reshape(1), (*index[:place], 0, *index[place + 1 :])
        axis += tensor.dim() - axes if part is Ellipsis else part is not None
    return None


def _is_pointer(part: object) -> bool:
    is_number = isinstance(part, Tensor) and part.dim() == 0
    return is_number and not part.is_floating_point() and part.dtype != torch.bool  # type: ignore[attr-defined]


class Float64Numbers(TorchFunctionMode):
    """While it is on, numbers in operations on float64 tensors alone are float64 tensors.

    The exporter writes every Python float as float32 and widens it then: a clock that adds 0.002
    would be wrong by 28 microseconds after ten minutes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_float64 = all(tensor.dtype in (torch.float64, torch.bool) for tensor in tensors)
        if not is_float64 or not any(_is_inexact(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        if func in (torch.full, torch.full_like):
            empty = func(*args, **kwargs)
            fill = args[1] if len(args) > 1 else kwargs["fill_value"]
            return empty.fill_(_exact(fill)) if empty.dtype == torch.float64 else empty
        if not wide or func is torch.tensor:
            return func(*args, **kwargs)
        try:
            return func(*pytree.tree_map(_exact, args), **pytree.tree_map(_exact, kwargs))
        except (TypeError, RuntimeError):  # an operation that takes a number there and no tensor
            return func(*args, **kwargs)


def _is_inexact(leaf: object) -> bool:
    return isinstance(leaf, float) and float(torch.tensor(leaf, dtype=torch.float32)) != leaf


def _exact(leaf: Any) -> Any:
    return torch.tensor(leaf, dtype=torch.float64) if isinstance(leaf, float) else leaf
