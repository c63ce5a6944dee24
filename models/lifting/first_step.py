"""How a module starts by itself, seen on a copy: the forms of its memory, and its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stategate.contract.errors import StategateError, TraceError
from stategate.contract.failures import failures
from stategate.models.lifting.blame import explained
from stategate.models.lifting.returned import Places, places_of_memory
from stategate.models.lifting.slots import (
    GROWING,
    Own,
    Slot,
    cloned,
    described,
    form_of,
    has,
    is_unset,
    memory_like,
    value_at,
)
from stategate.models.lifting.trees import (
    Inputs,
    Value,
    flattened,
    is_same,
    leaves_of,
    mapped,
    rebuilt,
)
from stategate.models.step import Tensors

STEPS = 3  # a flag that the first step sets is known by staying in the two after it
_SCALES = (1.0, 100.0, 1e4, 1e6, 1e8)  # ticks and pascals are large
_TOLERANCE = 1e-6


class Start(NamedTuple):
    """What a module does from its own start."""

    # what each attribute holds before the first step, and what each argument is handed
    own: dict[str, Value]
    after: list[dict[str, Value]]  # what they hold after each of the first steps
    places: Places  # where in what forward returns the arguments come back


def started(
    module: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    arguments: Mapping[str, Value],
    returns: Sequence[str],
) -> Start:
    """Call a module as its user would, on its own memory, and look at what that becomes.

    Args:
        module: A copy, which is used up.
        inputs: Example inputs.
        names: Its attributes that are memory.
        arguments: Its arguments that are memory; `Own.LEFT_OUT` for the argument's default.
        returns: Names of what forward returns, in order, where the user said so.
    """
    own = {
        name: cloned(value_at(module, name)) if has(module, name) else Own.ABSENT for name in names
    } | dict(arguments)
    memory, after = dict(arguments), list[dict[str, Value]]()
    places: Places = ()
    for t in range(STEPS):
        values = {name: value for name, value in memory.items() if value is not Own.LEFT_OUT}
        try:
            with torch.no_grad():
                fresh = inputs.arguments({n: t.clone() for n, t in inputs.tensors.items()})
                result = module(**fresh, **cloned(values))
        except failures() as problem:  # a user's code may raise anything
            raise _failed(module, own, after, t, problem) from problem
        if t == 0:
            forms = {name: values.get(name) for name in arguments}
            places = places_of_memory(module, result, forms, returns)
        memory = {name: result[place] for name, place in zip(memory, places, strict=True)}
        after.append({n: cloned(value_at(module, n)) for n in names} | cloned(memory))
    return Start(own, after, places)


def slot_of(
    name: str, start: Start, first_value: Value, axes: Mapping[str, int], module: nn.Module
) -> Slot:
    """A piece of memory with the value that it has before the first step.

    Args:
        name: The attribute or argument.
        start: What the module does from its own start.
        first_value: What the user gives; `Own.SAME` where that is the module's own.
        axes: The sessions' axis, by name; see `Slot`.
        module: An error names what else it has.
    """
    own, first, second, third = (start.own[name], *(after[name] for after in start.after))
    if first_value is not Own.SAME:
        changing = _changing([first_value, first, second, third])
        return Slot(name, first_value, axes, own, changing=changing)
    if is_unset(first) or not (_has_tensors(own) or form_of(first) == form_of(second)):
        raise _unset(module, name, own, [first, second])
    if not _has_tensors(first):
        # A flag: the first step sets it, and no later one changes it.
        if _same(first, second) and _same(second, third) and not _same(own, first):
            return Slot(name, first, axes, own, is_flag=True)
        return Slot(name, own, axes, changing=_changing([own, first, second, third]))
    # A number of an object that the first step sets, and no later one, is a flag.
    changing = _changing([first, second, third])
    if form_of(own) == form_of(first):
        if not changing >= _changing([own, first]):
            return Slot(name, _with_numbers_of(first, own, changing), axes, own, changing=changing)
        return Slot(name, own, axes, changing=changing)
    if isinstance(own, Tensor) or form_of(first) != form_of(second):
        return Slot(name, own, axes)  # whose form says what is wrong, when it is read back
    # None or a number that becomes a tensor: the form that it takes, filled with that number.
    fill = own if isinstance(own, (bool, int, float)) else 0
    value = mapped(lambda tensor: torch.full_like(tensor, fill), first)
    return Slot(name, value, axes, own, changing=changing)


def _changing(values: Sequence[Value]) -> set[str]:
    """Paths of numbers in objects that are not the same in all of these values."""
    all_leaves = [flattened(value)[0] for value in values]
    return {
        leaves[0].path
        for leaves in zip(*all_leaves, strict=False)
        if isinstance(leaves[0].value, (bool, int, float))
        and leaves[0].is_constant
        and not all(is_same(leaf.value, leaves[0].value) for leaf in leaves)
    }


def _with_numbers_of(first: Value, own: Value, changing: set[str]) -> Value:
    """The own value with constants as the first step leaves them."""
    leaves, form = flattened(own)
    after = flattened(first)[0]
    return rebuilt(
        [
            b.value if a.is_constant and a.path not in changing else a.value
            for a, b in zip(leaves, after, strict=True)
        ],
        form,
    )


def draws(example: Tensors) -> Iterator[dict[str, Tensor]]:
    """The example inputs, and random ones of many magnitudes and of either sign alone."""
    yield {name: tensor.clone() for name, tensor in example.items()}
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        for limits in ((None, None), (0.0, None), (None, 0.0)):
            yield {name: _drawn(t, generator, scale, limits) for name, t in example.items()}


def answer(call: Callable[[], Tensors]) -> Tensors:
    """What a call gives; nothing where it cannot take these numbers."""
    try:
        return call()
    except StategateError:
        raise
    except failures():  # a user's code may raise anything
        return {}


def alike(a: Tensors, b: Tensors) -> bool:
    """Whether two answers are the same but for rounding."""
    return a.keys() == b.keys() and all(_close(a[name], b[name]) for name in a)


def _close(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)


def _drawn(
    tensor: Tensor,
    generator: torch.Generator,
    scale: float,
    limits: tuple[float | None, float | None],
) -> Tensor:
    if not tensor.is_floating_point():
        if scale == _SCALES[0] or tensor.dtype == torch.bool:
            return torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype)
        span = torch.iinfo(tensor.dtype)
        low, high = max(-int(scale), span.min), min(int(scale), span.max)
        low, high = (0 if limits[0] is not None else low), (0 if limits[1] is not None else high)
        return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)
    drawn = torch.randn(tensor.shape, generator=generator) * scale
    return (drawn if limits == (None, None) else drawn.clamp(*limits)).to(tensor.dtype)


def _has_tensors(value: Value) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves_of(value))


def _same(a: Value, b: Value) -> bool:
    """Whether two values without tensors are the same."""
    return type(a) is type(b) and repr(a) == repr(b)


def _failed(
    module: nn.Module, own: dict[str, Value], after: list[dict[str, Value]], t: int, why: Exception
) -> StategateError:
    if isinstance(why, StategateError):
        return why
    unset = [name for name in own if is_unset(own[name]) or own[name] is Own.ABSENT]
    if t == 0 and unset:
        return _unset(module, unset[0], own[unset[0]], [None])
    return TraceError(
        "forward fails on its example inputs" if t == 0 else f"forward fails in step {t + 1}",
        found=explained(why),
        expected="inputs of the shapes and dtypes that the module takes, batch 1, and a module "
        "that works after copy.deepcopy",
    )


def _unset(module: nn.Module, name: str, own: Value, after: list[Value]) -> TraceError:
    if own is Own.ABSENT and name not in memory_like(module) and is_unset(after[0]):
        return TraceError(
            "the module has no buffer or attribute of this name",
            found=name,
            expected=", ".join(memory_like(module)) or "a dotted name",
        )
    grows = not is_unset(after[0]) and form_of(after[-1]) != form_of(after[0])
    return TraceError(
        f"the state {name!r} is read before it has a value",
        found=f"{described(own)} before the first step, {described(after[0])} after it",
        expected="a value of fixed form from the first step on",
        remedy=GROWING
        if grows
        else f'give it: states={{"{name}": torch.zeros(...)}}, or call what resets the module '
        "before lift()",
    )
