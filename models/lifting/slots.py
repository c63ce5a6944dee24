"""Places where a module keeps memory, by name: how their values become states, and come back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from stategate.contract.errors import TraceError
from stategate.models.lifting.trees import Value, flattened, is_same, leaves_of, mapped, rebuilt
from stategate.models.step import Tensors

_DIVISIONS = {"div", "true_divide", "__truediv__", "__rtruediv__", "__rdiv__"}


class Counts(TorchFunctionMode):
    """While it is on, ``count * 0.002`` has the 53 bits that it has in Python.

    In torch an integer tensor and a float give float32, and a clock of a few hours is coarse.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, Tensor] = {}  # kept, so that no identity is used again

    def __bool__(self) -> bool:
        return bool(self._counts)

    def hold(self, count: Tensor) -> Tensor:
        """Take a tensor for a Python integer."""
        self._counts[id(count)] = count
        return count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(id(tensor) in self._counts for tensor in tensors):
            return func(*args, **kwargs)
        if func.__name__ in _DIVISIONS or any(isinstance(leaf, float) for leaf in leaves):
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.double, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_floating_point():
            self.hold(result)
        return result


GROWING = (
    "what grows with every step is a KV cache: give it fixed slots, the last N rows as in "
    "torch.cat((cache[:, 1:], new), 1), StaticCache(config, max_cache_len=N) of transformers, or "
    "TRIM-KV, which chooses the rows that it keeps"
)
_PARTS = re.compile(r"\[[^]]*\]|[^.\[]+")  # of ``filters[0].inner`` and ``filters['a']``
# What torch itself keeps in every module, and the views that a recurrent one has of its weights.
_TORCHS = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}


class Own(Enum):
    """How a module itself starts, where that is no value."""

    SAME = "with the first value"
    LEFT_OUT = "with the default of the argument"
    ABSENT = "without the attribute"


class Slot:
    """One piece of memory: an attribute somewhere in a module, or an argument of forward.

    Args:
        name: Dotted name below the module, or the argument's.
        value: Its first value.
        axes: Which axis of a tensor is the sessions', by ``name`` or by the state's name; in states
            it is the first.
        own: What the module itself starts with, such as None, where its first step may be another
            than from the first value.
        changing: Paths of numbers in objects that steps change; other numbers there are constants.
        is_flag: Whether it holds this one value in every step but the first, and is no tensor.

    Attributes:
        first: The first value of each of its states, by state name: ``name``, or ``name[0]``,
            ``name['k']``, ``name.keys`` and so on for tensors inside of something; of a flag none.
        axes: The sessions' axis of each of its states.
    """

    def __init__(
        self,
        name: str,
        value: Value,
        axes: Mapping[str, int] | None = None,
        own: Value = Own.SAME,
        *,
        changing: Collection[str] = (),
        is_flag: bool = False,
    ) -> None:
        self.name, self.own = name, own
        self.first: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}
        self._flag, self._counts, self._infinite = value, set[str](), set[str]()
        self._constants: dict[str, Value] = {}
        leaves, self._tree = flattened(value)
        self._names = [name + leaf.path for leaf in leaves]
        for state, leaf in [] if is_flag else zip(self._names, leaves, strict=True):
            if leaf.is_constant and leaf.path not in changing:
                self._constants[state] = leaf.value
            else:
                self._add(state, leaf.value, (axes or {}).get(state, (axes or {}).get(name, 0)))
        if not (self.first or is_flag):
            raise _no_state(name, value)

    def _add(self, name: str, leaf: Value, axis: int) -> None:
        tensor = as_tensor(leaf)
        if not isinstance(tensor, Tensor) or not tensor.numel():
            raise _no_state(name, leaf)
        if axis and tensor.shape[axis : axis + 1] != (1,):
            raise TraceError(
                f"axis {axis} of {name!r} is not that of the sessions",
                found=described(tensor),
                expected="an extent of 1 there, for one session",
                remedy="name each part by itself, as in "
                f"session_axes={{{name!r}: AXIS}}; what is not named has it first",
            )
        if tensor.is_floating_point() and bool(tensor.isinf().any()):
            self._infinite.add(name)
        tensor = tensor.detach().movedim(axis, 0) if axis else tensor.detach()
        self.axes[name], self.first[name] = axis, self._finite(name, tensor.clone())
        # Arithmetic with a Python integer is exact where that with a tensor is rounded.
        if isinstance(leaf, (int, np.integer)) and not isinstance(leaf, bool):
            self._counts.add(name)

    def packed(self, states: Tensors, counts: Counts | None = None) -> Value:
        """The value for the module, of copies: it may write them in place."""
        if not self.first:
            return self._flag
        leaves = dict(self._constants)
        for name in self.first:
            axis, leaf = self.axes[name], states[name]
            # nn.LSTM takes contiguous tensors only.
            leaf = (leaf.movedim(0, axis) if axis else leaf).clone(
                memory_format=torch.contiguous_format
            )
            if name in self._infinite:
                limit = torch.finfo(leaf.dtype).max
                leaf = torch.where(leaf >= limit, torch.inf, leaf)
                leaf = torch.where(leaf <= -limit, -torch.inf, leaf)
            if counts is not None and name in self._counts:
                counts.hold(leaf)
            leaves[name] = leaf
        return rebuilt([leaves[name] for name in self._names], self._tree)

    def own_start(self, states: Tensors, counts: Counts | None = None) -> Value:
        """What the module itself starts with, of copies."""
        return self.packed(states, counts) if self.own is Own.SAME else cloned(self.own)

    def unpacked(self, value: Value, before: Tensors) -> dict[str, Tensor]:
        """The states that a value holds, by name."""
        if not self.first:
            if value != self._flag:
                raise _not_constant(self.name, value, self._flag)
            return {}
        leaves, tree = flattened(value)
        if tree != self._tree:
            raise TraceError(
                f"the state {self.name!r} does not keep its form",
                found=f"{described(value)} after a step",
                expected=f"the form it starts in: {', '.join(self.first)}",
                remedy=GROWING if len(leaves) > len(self._names) else None,
            )
        after = {}
        for name, leaf in zip(self._names, (leaf.value for leaf in leaves), strict=True):
            if name in self._constants:
                if not is_same(leaf, self._constants[name]):
                    raise _not_constant(name, leaf, self._constants[name])
                continue
            old, axis = before[name], self.axes[name]
            new = as_tensor(leaf)
            if isinstance(leaf, (bool, int, float)) and torch.can_cast(new.dtype, old.dtype):
                new = new.to(old.dtype)  # 0 for 0.0
            if axis and isinstance(new, Tensor) and new.dim() == old.dim():
                new = new.movedim(axis, 0)
            if not isinstance(new, Tensor) or (new.shape, new.dtype) != (old.shape, old.dtype):
                grown = isinstance(new, Tensor) and new.numel() > old.numel()
                raise TraceError(
                    f"the state {name!r} does not keep its shape and dtype",
                    found=f"{described(new)} after a step",
                    expected=f"{described(old)}, as before it",
                    remedy=GROWING if grown else "write it in the form that it starts in",
                )
            after[name] = self._finite(name, new)
        return after

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        """What starts at infinity has the last finite number for it: a state is always finite."""
        if name not in self._infinite:
            return tensor
        limit = torch.finfo(tensor.dtype).max
        return tensor.clamp(-limit, limit)


def _no_state(name: str, value: Value) -> TraceError:
    return TraceError(
        f"{name!r} cannot be a state",
        found=described(value),
        expected="tensors or numbers of fixed shape, or tuples, lists, dicts and objects of them",
        remedy=GROWING if isinstance(value, Tensor) else None,
    )


def _not_constant(name: str, value: Value, constant: Value) -> TraceError:
    return TraceError(
        f"{name!r} does not stay what the first step sets it to",
        found=f"{described(value)} after a step",
        expected=described(constant),
        remedy="keep it in a tensor, and choose with torch.where",
    )


def value_at(module: nn.Module, name: str) -> Value:
    """What a buffer or attribute holds now; None where there is none of this name."""
    owner, attribute = _owner_of(module, name)
    value = getattr(owner, attribute, None)
    if isinstance(value, nn.Parameter):
        raise TraceError(
            f"{name!r} is a parameter, and parameters are weights",
            expected="a buffer or an attribute",
            remedy=f'register_buffer("{attribute}", tensor) instead of nn.Parameter(tensor)',
        )
    return value


def has(module: nn.Module, name: str) -> bool:
    """Whether there is a buffer or attribute of this name."""
    return hasattr(*_owner_of(module, name))


def put(module: nn.Module, name: str, value: Value) -> None:
    """Give a buffer or attribute a value, without the history that autograd keeps of it."""
    if any(getattr(leaf, "requires_grad", False) for leaf in leaves_of(value)):
        value = mapped(Tensor.detach, value)
    _set(*_owner_of(module, name), value)


@contextmanager
def holding(module: nn.Module, name: str, value: Value) -> Iterator[None]:
    """Let a buffer or attribute have another value for a while."""
    owner, attribute = _owner_of(module, name)
    before = getattr(owner, attribute, Own.ABSENT)
    _set(owner, attribute, value)
    try:
        yield
    finally:
        _set(owner, attribute, before)


def attributes_of(module: nn.Module) -> Iterator[tuple[str, Value]]:
    """Buffers and attributes of a module and its parts, without what torch itself keeps there."""
    for prefix, part in module.named_modules():
        for name, value in {**part._buffers, **vars(part)}.items():
            if name not in _TORCHS:
                yield f"{prefix}.{name}" if prefix else name, value


def memory_like(module: nn.Module) -> dict[str, Value]:
    """Buffers and tensor attributes that may be memory, by name; None where still unset."""
    # Parts of torch's own keep running statistics and the like.
    torchs = {n for n, m in module.named_modules() if type(m).__module__.startswith("torch.")}
    candidates = {}
    for name, value in attributes_of(module):
        leaves = [leaf.value for leaf in flattened(value)[0] if not leaf.is_constant]
        holds_tensors = bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
        if name.rpartition(".")[0] not in torchs and (value is None or holds_tensors):
            candidates[name] = value
    return candidates


def described(value: Value) -> str:
    """A value in few words: dtype and shape of tensors."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    leaves = [leaf.value for leaf in flattened(value)[0] if not leaf.is_constant]
    if len(leaves) == 1 and leaves[0] is value:
        return (
            repr(value)
            if isinstance(value, (bool, int, float, type(None)))
            else type(value).__name__
        )
    return f"{type(value).__name__} of {', '.join(map(described, leaves)) or 'nothing'}"


def zeros_like(value: Value) -> str:
    """Source that makes zeros of the same form: what an error message offers to be pasted."""
    if isinstance(value, Tensor):
        dtype = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
        return f"torch.zeros({', '.join(map(str, value.shape)) or '()'}{dtype})"
    if isinstance(value, tuple):
        return f"({', '.join(map(zeros_like, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(zeros_like, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {zeros_like(v)}" for key, v in value.items()) + "}"
    return "..."


def cloned(value: Value) -> Value:
    """The same containers anew, and copies of their tensors."""
    return mapped(lambda tensor: tensor.detach().clone(), value)


def is_unset(value: Value) -> bool:
    """Whether a value has no form yet: None, nothing, or None inside of it."""
    leaves = [leaf.value for leaf in flattened(value)[0] if not leaf.is_constant]
    return not leaves or any(leaf is None for leaf in leaves)


def form_of(value: Value) -> object:
    """What has to stay for ever: containers, shapes and dtypes."""
    leaves, tree = flattened(value)
    forms = [
        (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, Tensor) else type(tensor)
        for tensor in (as_tensor(leaf.value) for leaf in leaves)
    ]
    return tree, forms


def as_tensor(leaf: Value) -> Value:
    """A number with all its bits: Python counts in float64 and int64, NumPy as it says."""
    if isinstance(leaf, (np.generic, np.ndarray)):
        return torch.from_numpy(np.array(leaf)) if leaf.dtype.kind in "biuf" else leaf
    if isinstance(leaf, (bool, int)):
        return torch.tensor(leaf)
    return torch.tensor(leaf, dtype=torch.float64) if isinstance(leaf, float) else leaf


def _owner_of(module: nn.Module, name: str) -> tuple[object, str]:
    path, _, attribute = name.rpartition(".")
    try:
        return reduce(_part, _PARTS.findall(path), module), attribute
    except (AttributeError, LookupError):
        raise TraceError(
            f"the module has no {path!r}",
            found=name,
            expected=", ".join(memory_like(module)) or "the dotted name of a buffer or attribute",
        ) from None


def _part(owner: Any, name: str) -> Any:
    if not name.startswith("["):
        return getattr(owner, name)
    return owner[int(name[1:-1]) if name[1:-1].isdecimal() else name[2:-2]]


def _set(owner: object, attribute: str, value: Value) -> None:
    if value is Own.ABSENT:
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    elif not isinstance(owner, nn.Module):
        setattr(owner, attribute, value)  # of an object with __slots__ too
    elif attribute in owner._buffers:
        owner._buffers[attribute] = value
    else:
        vars(owner)[attribute] = value
