"""A module that keeps its memory to itself as a step: its own code, the memory handed in.

A lifted module runs as it was written. For each step the declared buffers, attributes and arguments
take the values of the states; then what they hold is read back as next states, and the module is
left as it was.

Where the module's first step takes another path than later ones (``if self.avg is None``), both
paths are in the step, and a state called ``started`` chooses between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from stategate.contract import ObservationContract, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import TraceError
from stategate.contract.failures import failures
from stategate.models.lifting.copies import copied
from stategate.models.lifting.first_step import alike, answer, draws
from stategate.models.lifting.returned import Places
from stategate.models.lifting.slots import (
    Counts,
    Own,
    Slot,
    described,
    holding,
    put,
    value_at,
)
from stategate.models.lifting.trees import Inputs, Value
from stategate.models.step import StepResult, Tensors


class Lifted(nn.Module):
    """A module whose memory is in its arguments; made by `lift`.

    Attributes:
        lifted: The user's module.
        states: Its buffers and attributes that are states.
        arguments: What its forward takes and returns.
        inputs: Example inputs, and how they become arguments.
        family: Kind of memory.
        started: Name of the state that says there was a first step; empty where it is like others.
        observations: Whether a normaliser of them is part of the step; empty where nobody said.
        observes: What its inputs and outputs mean; an adapter fills it in, None where nobody said.
        attention: In what it is another model than the user's; empty where it is the same.
    """

    family = "custom"
    observations = ""
    observes: ObservationContract | None = None
    attention = ""

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
        self.started = ""
        self._spec = self._spec_from(inputs.tensors)

    def step_spec(self) -> StepSpec:
        """Signature of one step: the example's inputs, forward's outputs, and no gates."""
        return self._spec

    def initial_states(self) -> dict[str, Tensor]:
        """What the memory holds before the first step."""
        flag = {self.started: torch.zeros(1, 1, dtype=torch.bool)} if self.started else {}
        return self._first | flag

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One call of the module with this memory."""
        later = self._run(inputs, states)
        if not self.started:
            return StepResult(*later, {})
        begun = states[self.started]
        outputs, after = (
            {name: chosen(begun, late[name], early[name]) for name in late}
            for late, early in zip(later, self._run(inputs, states, own_start=True), strict=True)
        )
        return StepResult(outputs, after | {self.started: torch.ones_like(begun)}, {})

    def untouched(self) -> nn.Module:
        """A copy of the module as it was handed to `lift`: what this step must agree with."""
        return copied(self._untouched[0])

    def agree_with(self, reference: nn.Module) -> None:
        """Let this module, which is called as the lifted one, be what the step must agree with."""
        self._untouched = (reference,)

    @property
    def attributes(self) -> list[str]:
        """Names of the module's attributes that are states."""
        return [slot.name for slot in self.states]

    def read(
        self, module: nn.Module, arguments: dict[str, Value], before: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States and gates of the module alone, after a step; ``before`` are those before it."""
        # Ones that nothing below replaces belong to the state that says there was a first step.
        states = {name: torch.ones_like(tensor) for name, tensor in self.initial_states().items()}
        for slot in self.states:
            states |= slot.unpacked(value_at(module, slot.name), before)
        for slot in self.arguments:
            states |= slot.unpacked(arguments[slot.name], before)
        return states, {}

    def put(self, module: nn.Module, states: Tensors) -> None:
        """Give a module these states; arguments are handed over in the step."""
        for slot in self.states:
            put(module, slot.name, slot.packed(states))

    @property
    def has_first_step(self) -> bool:
        """Whether the module's first step is another than later ones."""
        return bool(self.started)

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
                    self.started = "started"
                    while self.started in {*self._first, *example_inputs}:
                        self.started += "_"
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


def chosen(begun: Tensor, later: Tensor, early: Tensor) -> Tensor:
    """Row by row the later one where there was a step already."""
    rows = begun.reshape(-1, *[1] * (later.dim() - 1)) if later.dim() else begun.reshape(())
    return torch.where(rows, later, early)


def _form(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
