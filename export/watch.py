"""Finding memory that a module keeps to itself: what differs after one step.

A step gives everything it remembers back as next states. Whatever else changes, a buffer, an
attribute, a counter, an entry of a dict, would be frozen at its present value in the traced graph
and forgotten on the device.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from stategate.contract.errors import UndeclaredStateError
from stategate.models.lifting import Lifted
from stategate.models.slots import GROWING

_OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in every module
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OPAQUE = (type, FunctionType, MethodType, ModuleType)
_DEPTH = 8


class _TensorPrint(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    contents: int
    version: int


class Watch:
    """Remembers a module's values, and tells which of them changed."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = {name for name, _ in _attributes(module)}
        self._before = {name: _print_of(value) for name, value in leaves(module)}

    def changed(self) -> list[str]:
        """Names of what differs from when the watch began, new values included."""
        after = {name: _print_of(value) for name, value in leaves(self._module)}
        names = [name for name in after if self._before.get(name) != after[name]]
        return names + [name for name in self._before if name not in after]

    def grown(self) -> list[str]:
        """Names of what became larger: tensors of more elements, containers of more entries."""
        names = []
        for name, value in leaves(self._module):
            before = self._before.get(name)
            if isinstance(before, _TensorPrint):
                grew = isinstance(value, torch.Tensor) and value.numel() > math.prod(before.shape)
            else:  # what was None has its first value now, and did not grow
                container, _, key = name.rpartition("[")
                known = container not in self._before and name.split("[")[0] in self._attributes
                grew = before is None and bool(key) and known
            names += [name] if grew else []
        return names


def undeclared(model: nn.Module, names: list[str], grown: Sequence[str]) -> UndeclaredStateError:
    """The error for values that change in a step and are no states, with what mends it.

    Args:
        model: The model, after the step.
        names: What changed, as `Watch` or torch.export names it.
        grown: Those among them that became larger.
    """
    where = "step_spec().states"
    if isinstance(model, Lifted):
        where = "states of lift()"
        declared = [slot.name for slot in model.states]
        wanted = dict.fromkeys([*declared, *(name.split("[")[0] for name in names)])
        remedy = f"lift(..., states={list(wanted)}), also for what only the first call sets"
    else:
        value = dict(leaves(model)).get(names[0])
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else "(1,)"
        short = "".join(c for c in names[0].rsplit(".", 1)[-1] if c.isalnum() or c == "_")
        remedy = (
            f'add StateSpec("{short}", {shape}) to the states of step_spec(), read '
            f'states["{short}"] instead of self.{names[0]}, and return the new value under '
            f'"{short}" in StepResult.states'
        )
    return UndeclaredStateError(
        "the step changes values that are not declared as states",
        found=", ".join(names[:8]),
        expected=f"everything the model remembers in {where}",
        remedy=GROWING if grown else remedy,
    )


def leaves(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers and every value that attributes lead to, by dotted name."""
    seen: set[int] = set()
    for name, value in _attributes(module):
        yield from _walk(name, value, seen, _DEPTH)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, part in module.named_modules():
        plain = {n: v for n, v in vars(part).items() if n not in _OWN}
        for name, value in {**part._parameters, **part._buffers, **plain}.items():
            yield f"{prefix}.{name}" if prefix else name, value


def _walk(name: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, np.ndarray, *_PLAIN)):
        yield name, value
        return
    if isinstance(value, (nn.Module, *_OPAQUE)) or id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inner = [(f"{name}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
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
        return _TensorPrint(str(value.dtype), tuple(value.shape), contents, value._version)
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, hash(value.tobytes()))
    return (type(value), repr(value))
