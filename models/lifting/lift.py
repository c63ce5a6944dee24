"""Modules that keep their memory to themselves, as steps: their own code, the memory handed in.

A lifted module runs as it was written. For each step the declared buffers, attributes and arguments
take the values of the states; then what they hold is read back as next states, and the module is
left as it was.

Where the module's first step takes another path than later ones (``if self.avg is None``), both
paths are in the step, and a state called ``started`` chooses between them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from stategate.contract import ObservationContract, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import TraceError
from stategate.contract.failures import failures
from stategate.models.counts import Counts
from stategate.models.lifting.copies import copied
from stategate.models.lifting.first_step import alike, answer, draws, slot_of, started
from stategate.models.lifting.programs import module_of
from stategate.models.lifting.returned import Places
from stategate.models.lifting.slots import (
    Own,
    Slot,
    as_tensor,
    described,
    holding,
    is_unset,
    memory_like,
    put,
    value_at,
)
from stategate.models.lifting.trees import Inputs, Value, flattened, leaves_of
from stategate.models.step import StepResult, Tensors


class Lifted(nn.Module):
    """A module whose memory is in its arguments; made by `lift`.

    Attributes:
        lifted: The user's module.
        states: Its buffers and attributes that are states.
        arguments: What its forward takes and returns.
        inputs: Example inputs, and how they become arguments.
        family: Kind of memory.
        observations: Whether a normaliser of them is part of the step; empty where nobody said.
        observes: What its inputs and outputs mean; an adapter fills it in, None where nobody said.

    Args:
        untouched: A copy of the module from before anything was put into it.
        places: Where in what forward returns each of the arguments comes back.
    """

    family = "custom"
    observations = ""
    observes: ObservationContract | None = None

    def __init__(
        self,
        module: nn.Module,
        inputs: Inputs,
        states: Iterable[Slot],
        arguments: Iterable[Slot],
        outputs: Sequence[str],
        returns: Sequence[str],
        untouched: nn.Module,
        places: Places,
    ) -> None:
        super().__init__()
        self.lifted, self.inputs = module, inputs
        self.states, self.arguments = tuple(states), tuple(arguments)
        self._outputs, self._places = tuple(outputs), places
        names = {slot.name for slot in self.arguments}
        self._returned = tuple(name for name in returns if name not in names)
        self._untouched = (untouched,)  # in a tuple, so that torch does not take it for a part
        self._started = ""
        self._spec = self._spec_from(inputs.tensors)

    def step_spec(self) -> StepSpec:
        """Signature of one step: the example's inputs, forward's outputs, and no gates."""
        return self._spec

    def initial_states(self) -> dict[str, Tensor]:
        """What the memory holds before the first step."""
        flag = {self._started: torch.zeros(1, 1, dtype=torch.bool)} if self._started else {}
        return self._first | flag

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One call of the module with this memory."""
        later = self._run(inputs, states)
        if not self._started:
            return StepResult(*later, {})
        begun = states[self._started]
        outputs, after = (
            {name: _chosen(begun, late[name], early[name]) for name in late}
            for late, early in zip(later, self._run(inputs, states, own_start=True), strict=True)
        )
        return StepResult(outputs, after | {self._started: torch.ones_like(begun)}, {})

    def untouched(self) -> nn.Module:
        """A copy of the module as it was handed to `lift`: what this step must agree with."""
        return copied(self._untouched[0])

    @property
    def has_first_step(self) -> bool:
        """Whether the module's first step is another than later ones."""
        return bool(self._started)

    @property
    def _slots(self) -> tuple[Slot, ...]:
        return (*self.states, *self.arguments)

    @property
    def _first(self) -> dict[str, Tensor]:
        return {name: tensor for slot in self._slots for name, tensor in slot.first.items()}

    def split(self, result: Value) -> tuple[dict[str, Tensor], dict[str, Value]]:
        """What forward returned: outputs by name, and hidden arguments by name."""
        if not self._places:
            return self._named(result), {}
        try:
            hidden = {s.name: result[p] for s, p in zip(self.arguments, self._places, strict=True)}
        except (LookupError, TypeError):
            raise TraceError(
                "forward does not return its memory in every step", found=described(result)
            ) from None
        if isinstance(result, Mapping):
            return self._named({n: v for n, v in result.items() if n not in hidden}), hidden
        result = [part for i, part in enumerate(result) if i not in self._places]
        return self._named(result[0] if len(result) == 1 else result), hidden

    def _named(self, result: Value) -> dict[str, Tensor]:
        if isinstance(result, Mapping):
            names = self._outputs or tuple(result)
            outputs = {name: result.get(name) for name in names}
        else:
            parts = tuple(result) if isinstance(result, (tuple, list)) else (result,)
            names = self._outputs or self._returned or (("output",) if len(parts) == 1 else ())
            if len(names) != len(parts):
                raise TraceError(
                    "every output of forward needs a name",
                    found=f"{len(parts)} outputs, and names for {len(names)}",
                    remedy='in order: lift(..., outputs=["action", "value"])',
                )
            outputs = dict(zip(names, parts, strict=True))
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        lacking = {name: described(outputs[name]) for name in outputs if name not in tensors}
        if lacking or not tensors:
            raise TraceError(
                "forward does not give a tensor for every output",
                found=", ".join(f"{name}: {value}" for name, value in lacking.items()) or "nothing",
                expected="a tensor, a tuple of tensors, or a dict of them by output name",
                remedy="what the next call takes back is no output: hidden={argument: first value}",
            )
        return tensors

    def _spec_from(self, example_inputs: Tensors) -> StepSpec:
        """Call a copy of the module, to see what it gives and whether its first step is special."""
        original, self.lifted = self.lifted, copied(self.lifted)
        try:
            with torch.no_grad():
                if not self._starts_alike(example_inputs):
                    self._started = "started"
                    while self._started in {*self._first, *example_inputs}:
                        self._started += "_"
                inputs = {name: tensor.clone() for name, tensor in example_inputs.items()}
                result = self.step(inputs, self.initial_states())
        finally:
            self.lifted = original
        axes = {name: axis for slot in self._slots for name, axis in slot.axes.items()}
        return StepSpec(
            tuple(TensorSpec(n, *_form(t)) for n, t in example_inputs.items()),
            tuple(TensorSpec(n, *_form(t)) for n, t in result.outputs.items()),
            tuple(
                StateSpec(
                    n, *_form(t), layout=f"axis {axes[n]} of the module's" if axes.get(n) else ""
                )
                for n, t in self.initial_states().items()
            ),
        )

    def _starts_alike(self, example: Tensors) -> bool:
        """Whether the first step is that from the first values, whatever the inputs are."""
        if all(slot.own is Own.SAME for slot in self._slots):
            return True

        def once(inputs: Tensors, own_start: bool) -> dict[str, Tensor]:
            copies = {name: tensor.clone() for name, tensor in inputs.items()}
            outputs, after = self._run(copies, self._first, own_start=own_start)
            return {**outputs, **{f"{name} after it": tensor for name, tensor in after.items()}}

        try:
            once(example, True)
        except failures():  # an argument's default is no start: what the user hands in is
            for slot in self.arguments:
                slot.own = Own.SAME
        return all(
            alike(answer(partial(once, inputs, True)), answer(partial(once, inputs, False)))
            for inputs in draws(example)
        )

    def _run(
        self, inputs: Tensors, states: Tensors, *, own_start: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs and next states of one call, from these states or as the module itself starts."""
        module, after, counts = self.lifted, dict[str, Tensor](), Counts()
        values = {
            slot.name: (slot.own_start if own_start else slot.packed)(states, counts)
            for slot in self._slots
        }
        with ExitStack() as stack:
            for slot in self.states:
                stack.enter_context(holding(module, slot.name, values[slot.name]))
            # A mode of torch slows every operation down, so it is entered where it is needed.
            with counts if counts else nullcontext():
                result = module(**self.inputs.arguments(inputs), **self.hidden_arguments(values))
            outputs, hidden = self.split(result)
            for slot in self.states:
                after |= slot.unpacked(value_at(module, slot.name), states)
        for slot in self.arguments:
            after |= slot.unpacked(hidden[slot.name], states)
        return outputs, after

    def hidden_arguments(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The hidden arguments among these values, without those that are left to a default."""
        names = [slot.name for slot in self.arguments]
        return {name: values[name] for name in names if values[name] is not Own.LEFT_OUT}


def lift(
    module: nn.Module | torch.export.ExportedProgram,
    example_inputs: Mapping[str, Value],
    *,
    states: Sequence[str] | Mapping[str, Value] = (),
    hidden: Mapping[str, Value] | None = None,
    outputs: Sequence[str] = (),
    session_axes: Mapping[str, int] | None = None,
    returns: Sequence[str] = (),
) -> Lifted:
    """Make a step of a module that keeps memory in buffers, in attributes, or in an argument.

    The module is put into evaluation mode, and copies of it are called. What ``states`` gives it,
    it keeps; nothing else of it changes.

    Args:
        module: Its ``forward`` does one step. Or what `torch.export.load` gives: its buffers then
            have names such as ``program.h``.
        example_inputs: A tensor for each argument of ``forward`` that is an input, by the
            argument's name, or a dict of them: each is an input that has its key's name. The
            leading axis is 1 if several sessions shall share one graph.
        states: Buffers and attributes that ``forward`` updates, in place or by assignment, by
            dotted name: ``["h", "inner.count"]``. What they hold now is the initial state; where
            that is None, or a flag that the first step sets, the step gets a state ``started``,
            unless zeros do the same. A mapping gives first values where the module has none:
            ``{"hidden": torch.zeros(2, 1, 150)}``; it has to start as the module does.
        hidden: Arguments that ``forward`` takes and returns, with their first values, by name:
            ``{"hidden": (h, c)}``; None for what the argument's default does. They are the last
            of what it returns, in this order, unless ``returns`` says otherwise.
        outputs: Names of all else that it returns, in order. A dict has its own.
        session_axes: Which axis belongs to the sessions where it is not the first, by the name
            declared here: ``{"hidden": 1}`` for the ``(layers, batch, hidden)`` of ``nn.LSTM`` and
            ``nn.GRU``; or of one part by the state's name, ``{"mem['h']": 1}``. The step's states
            then have it first.
        returns: Names of all that ``forward`` returns, in its order, hidden arguments by theirs:
            ``["carry", "y"]``. Needed where an output has the form of the memory and the source of
            ``forward`` does not tell them apart.

    Returns:
        A step whose states are named as here; ``hidden[0]``, ``mem['h']`` and ``mem.h`` are inside
        of tuples, dicts and objects.

    Raises:
        TraceError: Something declared does not exist, has no value yet, or changes shape or dtype;
            or forward fails, or returns something else.
    """
    module = module_of(module)
    module.eval()
    inputs = Inputs(example_inputs)
    arguments = dict(hidden or {})
    axes = dict(session_axes or {})
    _check_arguments(module, {**example_inputs, **arguments})
    names = (states,) if isinstance(states, str) else tuple(states)
    if not (names or arguments):
        raise TraceError(
            "lift() does not know what the module remembers",
            found="neither states nor hidden arguments",
            expected="states=[names of buffers and attributes], or hidden={argument: first value}",
            remedy=f"what may be memory here: {', '.join(memory_like(module)) or 'no attribute'}",
        )
    for name in names:
        if value_at(module, name) is not None:
            put(module, name, value_at(module, name))  # without history, so that it can be copied
    first: dict[str, Value] = dict(states) if isinstance(states, Mapping) else {}
    first |= {name: value for name, value in arguments.items() if not is_unset(value)}
    parameters = inspect.signature(module.forward).parameters.values()
    optional = {p.name for p in parameters if p.default is not inspect.Parameter.empty}
    # An object knows itself whether it is empty, as a cache of transformers does.
    objects = {n for n, v in arguments.items() if any(x.is_constant for x in flattened(v)[0])}
    hidden = {
        name: Own.LEFT_OUT if name in optional - first.keys() - objects else value
        for name, value in arguments.items()
    }
    untouched = copied(module)
    try:
        start = started(copied(untouched), inputs, names, hidden, returns)
    except TraceError:
        if not isinstance(states, Mapping):
            raise
        for name, value in states.items():  # the module has no start of its own
            put(untouched, name, value)
        start = started(copied(untouched), inputs, names, hidden, returns)
    for name, value in arguments.items():
        if name in objects:
            start.own[name] = first.pop(name, value)
        # Zeros stand for "no memory yet", which the default of the argument may mean otherwise.
        elif name in first:
            zeros = name in optional and not _holds_numbers(value)
            start.own[name] = Own.LEFT_OUT if zeros else Own.SAME
    slots = {
        name: slot_of(name, start, first.get(name, Own.SAME), axes, module)
        for name in (*names, *arguments)
    }
    states_named = [name for slot in slots.values() for name in slot.first]
    if unknown := sorted(set(axes) - {*slots, *states_named}):
        raise TraceError(
            "session_axes names what is no state",
            found=", ".join(unknown),
            expected=", ".join(dict.fromkeys([*slots, *states_named])),
        )
    # The module keeps the first values: a state must have the form that the trace will see.
    for name in names:
        put(module, name, slots[name].packed(slots[name].first))
    lifted = Lifted(
        module,
        inputs,
        [slots[name] for name in names],
        [slots[name] for name in arguments],
        (outputs,) if isinstance(outputs, str) else outputs,
        returns,
        untouched,
        start.places,
    )
    placeholders = [name for name in first if slots[name].own is not Own.SAME]
    if lifted.has_first_step and placeholders:
        raise TraceError(
            "the module does not start with these first values",
            found=f"a first step of its own, and first values for {', '.join(placeholders)}",
            expected="what the module itself does in its first step",
            remedy="; ".join(_starts(names, arguments)) + " takes the module's own first step; to "
            "start elsewhere, set the value on the module before lift()",
        )
    return lifted


def _starts(names: Sequence[str], arguments: Mapping[str, Value]) -> list[str]:
    parts = [f"states={list(names)}"] if names else []
    hidden = ", ".join(f'"{name}": None' for name in arguments)
    return [*parts, f"hidden={{{hidden}}}"] if arguments else parts


def _holds_numbers(value: Value) -> bool:
    """Whether anything in it is not zero."""
    leaves = map(as_tensor, leaves_of(value))
    return any(isinstance(leaf, Tensor) and bool(leaf.any()) for leaf in leaves)


def _check_arguments(module: nn.Module, arguments: Mapping[str, Value]) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**arguments)
    except TypeError as problem:
        raise TraceError(
            "forward does not take these arguments",
            found=f"{', '.join(arguments) or 'none'}: {problem}",
            expected=f"the arguments of forward{signature}, by name",
            remedy="name inputs in example_inputs, and memory that forward takes in hidden",
        ) from None


def _chosen(begun: Tensor, later: Tensor, early: Tensor) -> Tensor:
    """Row by row the later one where there was a step already."""
    rows = begun.reshape(-1, *[1] * (later.dim() - 1)) if later.dim() else begun.reshape(())
    return torch.where(rows, later, early)


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
