"""Modules that keep their memory to themselves, as steps: their own code, the memory handed in.

A lifted module runs as it was written. For each step the declared buffers, attributes and arguments
take the values of the states; then what they hold is read back as next states, and the module is
left as it was.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import StategateError, TraceError
from stategate.models.blame import explained
from stategate.models.slots import (
    GROWING,
    Slot,
    Value,
    holding,
    memory_like,
    put,
    told,
    value_at,
    zeros_like,
)
from stategate.models.step import StepResult, Tensors


class Lifted(nn.Module):
    """A module whose memory is in its arguments; made by `lift`.

    Attributes:
        lifted: The user's module.
        states: Its buffers and attributes that are states.
        arguments: What its forward takes and returns.
        family: Kind of memory.
        observations: Whether a normaliser of them is part of the step; empty where nobody said.
    """

    family = "custom"
    observations = ""

    def __init__(
        self,
        module: nn.Module,
        example_inputs: Tensors,
        states: Iterable[Slot],
        arguments: Iterable[Slot],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.lifted = module
        self.states, self.arguments = tuple(states), tuple(arguments)
        self._outputs = tuple(outputs)
        self._spec = self._spec_from(example_inputs)

    def step_spec(self) -> StepSpec:
        """Signature of one step: the example's inputs, forward's outputs, and no gates."""
        return self._spec

    def initial_states(self) -> dict[str, Tensor]:
        """What the memory held when the module was lifted."""
        return {n: t for slot in (*self.states, *self.arguments) for n, t in slot.first.items()}

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One call of the module with this memory.

        Raises:
            TraceError: A state or an output does not keep its form.
        """
        return self._step_of(self.lifted, inputs, states)

    def alone(self) -> Alone:
        """The module by itself, on a memory of its own: what this step must agree with.

        Raises:
            TraceError: The module cannot be copied.
        """
        return Alone(_copied(self.lifted), self)

    def told_apart(self, result: Value) -> tuple[dict[str, Tensor], dict[str, Value]]:
        """What forward returned: outputs by name, and arguments that it gives back, by name.

        Raises:
            TraceError: It is something else.
        """
        names = [slot.name for slot in self.arguments]
        held: dict[str, Value] = {}
        if names:
            if not isinstance(result, (tuple, list)) or len(result) <= len(names):
                raise TraceError(
                    "forward does not return its memory",
                    found=told(result),
                    expected=f"(outputs ..., {', '.join(names)}): the memory last, in this order",
                )
            held = dict(zip(names, result[-len(names) :], strict=True))
            result = result[: -len(names)]
            result = result[0] if len(result) == 1 else result
        return self._named(result), held

    def _named(self, result: Value) -> dict[str, Tensor]:
        if isinstance(result, Mapping):
            names = self._outputs or tuple(result)
            outputs = {name: result.get(name) for name in names}
        else:
            given = tuple(result) if isinstance(result, (tuple, list)) else (result,)
            names = self._outputs or (("output",) if len(given) == 1 else ())
            if len(names) != len(given):
                raise TraceError(
                    "every output of forward needs a name",
                    found=f"{len(given)} outputs, and names for {len(names)}",
                    remedy='in order: lift(..., outputs=["action", "value"])',
                )
            outputs = dict(zip(names, given, strict=True))
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        lacking = {name: told(outputs[name]) for name in outputs if name not in tensors}
        if lacking or not tensors:
            raise TraceError(
                "forward does not give a tensor for every output",
                found=", ".join(f"{name}: {value}" for name, value in lacking.items()) or "nothing",
                expected="a tensor, a tuple of tensors, or a dict of them by output name",
                remedy="what the next call takes back is no output: hidden={argument: first value}",
            )
        return tensors

    def _spec_from(self, example_inputs: Tensors) -> StepSpec:
        """Call a copy of the module once, to see what it gives."""
        trial = _copied(self.lifted)
        first = self.initial_states()
        try:
            with torch.no_grad():
                given = {name: tensor.clone() for name, tensor in example_inputs.items()}
                result = self._step_of(trial, given, first)
        except StategateError:
            raise
        except Exception as problem:  # a user's code may raise anything
            raise TraceError(
                "forward fails on its example inputs",
                found=explained(problem),
                expected="inputs of the shapes and dtypes that the module takes, batch 1",
            ) from problem
        axes = {n: slot.axis for slot in (*self.states, *self.arguments) for n in slot.first}
        return StepSpec(
            tuple(TensorSpec(n, *_form(t)) for n, t in example_inputs.items()),
            tuple(TensorSpec(n, *_form(t)) for n, t in result.outputs.items()),
            tuple(
                StateSpec(n, *_form(t), layout=f"axis {axes[n]} of the module's" if axes[n] else "")
                for n, t in first.items()
            ),
        )

    def _step_of(self, module: nn.Module, inputs: Tensors, states: Tensors) -> StepResult:
        after: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for slot in self.states:
                stack.enter_context(holding(module, slot.name, slot.packed(states)))
            held = {slot.name: slot.packed(states) for slot in self.arguments}
            outputs, held = self.told_apart(module(**inputs, **held))
            for slot in self.states:
                after |= slot.unpacked(value_at(module, slot.name), states)
        for slot in self.arguments:
            after |= slot.unpacked(held[slot.name], states)
        return StepResult(outputs, after, {})


class Alone:
    """A copy of a lifted module on its own memory, which nobody hands in or takes out."""

    def __init__(self, module: nn.Module, lifted: Lifted) -> None:
        self._module, self._lifted = module, lifted
        self._first = lifted.initial_states()
        self._held = {slot.name: slot.packed(self._first) for slot in lifted.arguments}

    @torch.no_grad()
    def step(self, inputs: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, and states after the step, by name; the next step may change them in place."""
        outputs, self._held = self._lifted.told_apart(self._module(**inputs, **self._held))
        after: dict[str, Tensor] = {}
        for slot in self._lifted.states:
            after |= slot.unpacked(value_at(self._module, slot.name), self._first)
        for slot in self._lifted.arguments:
            after |= slot.unpacked(self._held[slot.name], self._first)
        return outputs, after


def lift(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    *,
    states: Sequence[str] | Mapping[str, Value] = (),
    hidden: Mapping[str, Value] | None = None,
    outputs: Sequence[str] = (),
    session_axes: Mapping[str, int] | None = None,
) -> Lifted:
    """Make a step of a module that keeps memory in buffers, in attributes, or in an argument.

    The module is put into evaluation mode and called once, on a copy. What ``states`` gives it, it
    keeps; nothing else of it changes.

    Args:
        module: Its ``forward`` does one step.
        example_inputs: A tensor for each argument of ``forward`` that is an input, by the
            argument's name. The leading axis is 1 if several sessions shall share one graph.
        states: Buffers and attributes that ``forward`` updates, in place or by assignment, by
            dotted name: ``["h", "inner.count"]``. What they hold now is the initial state. A
            mapping gives them first values instead: ``{"hidden": torch.zeros(2, 1, 150)}``.
        hidden: Arguments that ``forward`` takes and returns, with their first values, by name:
            ``{"hidden": (h, c)}``. They are the last of what it returns, in this order.
        outputs: Names of all else that it returns, in order. A dict has its own.
        session_axes: Which axis belongs to the sessions where it is not the first, by the name
            declared here: ``{"hidden": 1}`` for the ``(layers, batch, hidden)`` of ``nn.LSTM`` and
            ``nn.GRU``. The step's states then have it first.

    Returns:
        A step whose states are named as here; ``hidden[0]`` and ``mem['h']`` are inside of tuples
        and dicts.

    Raises:
        TraceError: Something declared does not exist, has no value yet, or changes shape or dtype;
            or forward fails, or returns something else.
    """
    module.eval()
    for name, tensor in example_inputs.items():
        if not isinstance(tensor, Tensor):
            raise TraceError(
                f"the example input {name!r} is no tensor",
                found=told(tensor),
                expected="a tensor",
                remedy="bind what never changes in a module of your own around this one",
            )
    arguments = dict(hidden or {})
    axes = dict(session_axes or {})
    _check_arguments(module, {**example_inputs, **arguments})
    names = (states,) if isinstance(states, str) else tuple(states)
    given = states if isinstance(states, Mapping) else {n: value_at(module, n) for n in names}
    for name, value in given.items():
        if _is_unset(value):
            raise _unset_state(module, name, {**example_inputs, **arguments})
        put(module, name, value)
    unset = [name for name, value in arguments.items() if _is_unset(value)]
    strange = sorted(set(axes) - {*names, *arguments})
    if not (names or arguments) or unset or strange:
        raise TraceError(
            "lift() cannot tell what the module remembers",
            found=f"no first value for {', '.join(unset)}"
            if unset
            else f"session_axes for {', '.join(strange)}"
            if strange
            else "neither states nor hidden arguments",
            expected="states=[names of buffers and attributes], or hidden={argument: first value}",
            remedy=f"what may be memory here: {', '.join(memory_like(module)) or 'no attribute'}",
        )
    return Lifted(
        module,
        dict(example_inputs),
        [Slot(name, value_at(module, name), axes.get(name, 0)) for name in names],
        [Slot(name, value, axes.get(name, 0)) for name, value in arguments.items()],
        (outputs,) if isinstance(outputs, str) else outputs,
    )


def _check_arguments(module: nn.Module, arguments: Mapping[str, Value]) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**arguments)
    except TypeError as problem:
        raise TraceError(
            "forward cannot be called with these arguments",
            found=f"{', '.join(arguments) or 'none'}: {problem}",
            expected=f"the arguments of forward{signature}, by name",
            remedy="name inputs in example_inputs, and memory that is handed in in hidden",
        ) from None


def _is_unset(value: Value) -> bool:
    leaves = pytree.tree_leaves(value)
    return not leaves or any(leaf is None for leaf in leaves)


def _unset_state(module: nn.Module, name: str, arguments: Mapping[str, Value]) -> TraceError:
    """Why a state without a value cannot be one, and what it may be: seen in one call."""
    trial, before = _copied(module), value_at(module, name)
    seen: list[Value] = []
    try:
        with torch.no_grad():
            for _ in range(2):
                trial(**arguments)
                seen.append(copy.deepcopy(value_at(trial, name)))
    except Exception:  # reading what has no value may be what fails
        seen.append(seen[0] if seen else None)
    after = seen[0]
    if before is None and _is_unset(after) and name not in memory_like(module):
        return TraceError(
            "the module has no buffer or attribute of this name",
            found=name,
            expected=", ".join(memory_like(module)) or "a dotted name",
        )
    first = zeros_like(after) if not _is_unset(after) else "torch.zeros(...)"
    return TraceError(
        f"the state {name!r} is read before it has a value",
        found=f"{told(before)} before the first step, {told(after)} after it",
        expected="its value before the first step",
        remedy=GROWING
        if told(seen[-1]) != told(after)
        else f'give it: states={{"{name}": {first}}}, or call what resets the module before lift()',
    )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as problem:  # a user's objects may raise anything
        raise TraceError(
            "the module cannot be copied, and is not tried out itself",
            found=explained(problem),
            expected="a module that copy.deepcopy can copy",
            remedy="detach() what it computed before, and make file handles and locks later",
        ) from problem


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
