"""Finding memory that a module keeps to itself: what differs after one step.

A step gives everything it remembers back as next states. Whatever else changes, a buffer, an
attribute, a counter, an entry of a dict, would be frozen at its present value in the traced graph
and forgotten on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in every module
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OPAQUE = (type, FunctionType, MethodType, ModuleType)
_DEPTH = 8


class Watch:
    """Remembers a module's values, and tells which of them changed."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: _print_of(value) for name, value in leaves(module)}

    def changed(self) -> list[str]:
        """Names of what differs from when the watch began, new values included."""
        after = {name: _print_of(value) for name, value in leaves(self._module)}
        names = [name for name in after if self._before.get(name) != after[name]]
        return names + [name for name in self._before if name not in after]


def leaves(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers and every value that attributes lead to, by dotted name."""
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        attributes = {n: v for n, v in vars(part).items() if n not in _OWN}
        for name, value in {**part._parameters, **part._buffers, **attributes}.items():
            yield from _walk(f"{prefix}.{name}" if prefix else name, value, seen, _DEPTH)


def _walk(name: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, np.ndarray, *_PLAIN)):
        yield name, value
        return
    if isinstance(value, (nn.Module, *_OPAQUE)) or id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inner = [(f"{name}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        inner = [(f"{name}.{key}", item) for key, item in getattr(value, "__dict__", {}).items()]
    for key, item in inner:
        yield from _walk(key, item, seen, depth - 1)


def _print_of(value: Any) -> object:
    """Something that is equal as long as the value is the same, bit for bit.

    Bytes beside the version counter: writes through ``.data`` do not advance it, and a write of
    the value that was there before still is one.
    """
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        contents = hash(raw.numpy().tobytes())
        return (str(value.dtype), tuple(value.shape), contents, value._version)
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, hash(value.tobytes()))
    return (type(value), repr(value))
