"""Finding memory that a module keeps to itself.

A step gives everything it remembers back as next states. Whatever else it assigns, and reads before
it assigns it, would be frozen at its present value in the traced graph and forgotten on the device.

What a step assigns is known by identity, version and value, and by the operations that write in
place; whether anything comes of it is followed through the tensors of a step. What is assigned and
decides nothing (an attention map that is kept to be looked at, a count of calls) is no memory.
Last, the step is run from equal states after different pasts, and must answer alike: that finds
what cannot be reached from the module.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from torch import nn

from stategate.contract.errors import StategateError, UndeclaredStateError
from stategate.contract.failures import failures
from stategate.export.memory.flow import Flow, Number
from stategate.export.memory.moments import (
    Moment,
    Round,
    View,
    decides,
    is_borrowed,
    is_constant,
    look,
    root,
)
from stategate.export.memory.reach import Place
from stategate.models.lifting.first_step import alike, answer, draws
from stategate.models.lifting.lift import Lifted
from stategate.models.lifting.slots import GROWING
from stategate.models.step import Tensors

RANDOM = "random numbers"


def undeclared(
    model: nn.Module,
    names: Sequence[str],
    *,
    value: object = None,
    grown: bool = False,
    outside: bool = False,
) -> UndeclaredStateError:
    """The error for values that change in a step and are no states.

    ``value`` is what the first of them holds, ``grown`` whether it becomes larger with every step,
    ``outside`` whether it lies where no state can be declared, such as a closure.
    """
    lifted = isinstance(model, Lifted)
    where = "states of lift()" if lifted else "step_spec().states"
    short = "".join(c for c in names[0].rsplit(".", 1)[-1] if c.isalnum() or c == "_")
    if grown:
        remedy = GROWING
    elif names[0] == RANDOM:
        remedy = "hand them over as an input, such as forward(x, noise), or leave them out"
    elif outside:
        remedy = "keep it in a buffer of the module, and declare that: no state can be kept there"
    elif isinstance(model, Lifted):
        states = dict.fromkeys([*model.attributes, *map(root, names)])
        remedy = f"lift(..., states={list(states)}), also for what only the first call sets"
    else:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else "(1,)"
        remedy = (
            f'add StateSpec("{short}", {shape}) to the states of step_spec(), read '
            f'states["{short}"] instead of self.{names[0]}, and return the new value under '
            f'"{short}" in StepResult.states'
        )
    return UndeclaredStateError(
        "the step changes values that are not declared as states",
        found=", ".join(names[:8]),
        expected=f"everything the model remembers in {where}",
        remedy=remedy,
    )


Run = Callable[[Tensors], Tensors]
"""One step on copies of inputs and states, by name; everything that it gives, by name."""

ARGUMENTS = "inputs and states"
_ROUNDS = 3  # what the first step sets is known by staying in the two after it
_PAST = 24
_SECONDS = 2.0


class Watch:
    """Looks for memory in a model, and knows what else it assigns."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._module: nn.Module = model.lifted if isinstance(model, Lifted) else model
        self._declared = model.attributes if isinstance(model, Lifted) else []
        self._idle: list[Place] = []

    @torch.no_grad()
    def search(self, run: Run, example: Tensors, inputs: Sequence[str]) -> None:
        """Run steps, and refuse what remembers."""
        view, dice = look(self._module, self._declared), _dice()
        start = view.at
        feeds = [{**example, **drawn} for drawn in draws({n: example[n] for n in inputs})]
        probes = feeds[::2]
        answers = [answer(partial(run, probe)) for probe in probes]
        self._put_back(view)  # so that the steps below are the first ones again
        rounds: list[Round] = []
        for _ in range(_ROUNDS):
            rounds.append(self._followed(run, example, rounds))
        assigned = list(dict.fromkeys(name for r in rounds for name in r.assigned))
        remember = self._remembering(assigned, rounds)
        if not remember and self._first_is_special(run, feeds, view, rounds):
            remember = {name for name in rounds[0].assigned if not is_constant(name, rounds)}
        if remember:
            raise self._error(remember, assigned, rounds[-1].before)
        # What is left decides nothing: a trace may assign it and forget it.
        self._idle = [moment.place for name, moment in self._look().items() if name in assigned]
        self._live(run, example, feeds, inputs)
        # The same inputs and states after another past: this sees what no walk reaches.
        later = [answer(partial(run, probe)) for probe in probes]
        if not all(map(alike, answers, later)):
            now = self._look()
            changed = [n for n, m in now.items() if n not in start or m.differs(start[n])]
            if not changed and _dice() != dice:
                changed = [RANDOM]
            names = changed or ["something that cannot be reached from it"]
            raise self._error(names, changed, start)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Let a step assign what it forgets, and leave the module as it was: for a trace."""
        if not self._idle:
            yield
            return
        parts = [s for part in self._module.modules() for s in (vars(part), part._buffers)]
        copies = [dict(part) for part in parts]
        cells = [place.cell for place in self._idle if place.cell is not None]
        values = [cell.get() for cell in cells]
        for cell, value in zip(cells, values, strict=True):
            if isinstance(value, torch.Tensor):
                cell.put(value.detach().clone())  # which may be written in place
        try:
            yield
        finally:
            for cell, value in zip(cells, values, strict=True):
                cell.put(value)
            for part, before in zip(parts, copies, strict=True):
                for name in part.keys() - before.keys():
                    del part[name]
                part.update(before)

    def _look(self) -> dict[str, Moment]:
        return look(self._module, self._declared).at

    def _put_back(self, start: View) -> bool:
        """Give every place the value that it had, and say whether that went well."""
        now = self._look()
        for name, moment in now.items():
            # Globals and class attributes are in no container below, so they are dropped by name.
            if name not in start.at and moment.place.cell and moment.place.cell.is_named:
                moment.place.cell.drop()
        for contents in start.contents:
            contents.restore()
        for name, moment in start.at.items():
            value, cell = moment.place.value, moment.place.cell
            if cell is not None and (name not in now or now[name].place.value is not value):
                with suppress(LookupError, AttributeError, TypeError):
                    cell.put(value)
            moment.restore()
        again = self._look()
        return all(n in again and again[n].print == m.print for n, m in start.at.items())

    def _followed(self, run: Run, example: Tensors, rounds: Sequence[Round]) -> Round:
        """One step, with everything followed that reaches into it."""
        before = self._look()
        uses: set[str] = set()
        # What the first step alone sets is judged by itself, in `_first_is_special`.
        changing = {name for r in rounds[1:] for name in r.assigned}
        counts = {n: m.place for n, m in before.items() if n in changing and m.is_count}
        result, flow = _flow(run, example, before, counts, uses)
        if flow is None and counts:  # not everything takes what stands for a number
            uses |= counts.keys()
            result, flow = _flow(run, example, before, {}, uses)
        if flow is None:
            result = run(example)
        after = self._look()
        assigned = {
            name: None
            for name in {**after, **before}
            if name not in before
            or name not in after
            or after[name].differs(before[name])
            # Writing the same bytes again is assigning too: other inputs may give others.
            or (flow is not None and flow.was_written(before[name].place.value))
        }
        return Round(before, after, assigned, flow, result, uses)

    def _remembering(self, assigned: Sequence[str], rounds: Sequence[Round]) -> set[str]:
        """Which of the places that steps assign are read first, and decide something."""
        names = {name for name in assigned if decides(name, rounds)}
        while True:
            # What flows into a memory is one, though it takes another step to be seen.
            more = {
                name
                for r in rounds
                if r.flow is not None
                for into in names & r.after.keys()
                for name in r.flow.names_of(r.after[into].place.value) & set(assigned)
                if not (r is rounds[0] and is_borrowed(name, rounds))
            }
            if more <= names:
                return names
            names |= more

    def _first_is_special(
        self,
        run: Run,
        feeds: Sequence[Tensors],
        start: View,
        rounds: Sequence[Round],
    ) -> bool:
        """Whether the first step answers otherwise than later ones, because of what it sets."""
        if all(is_constant(name, rounds) for name in rounds[0].assigned):
            return False
        later = [answer(partial(run, feed)) for feed in feeds]
        expected = {*start.at, *(name for name in rounds[0].after if is_constant(name, rounds))}
        # Each first step needs the module as it was; where that fails, it counts as special.
        return not all(
            self._put_back(start)
            and expected >= self._look().keys()
            and alike(answer(partial(run, feed)), answer_later)
            for feed, answer_later in zip(feeds, later, strict=True)
        )

    def _live(
        self, run: Run, example: Tensors, feeds: Sequence[Tensors], inputs: Sequence[str]
    ) -> None:
        """A past: steps on changing inputs, with the states that come of them."""
        states, start = dict(example), time.perf_counter()
        for feed in islice(cycle(feeds), _PAST):
            after = answer(partial(run, {**states, **{n: feed[n] for n in inputs}}))
            states = {name: after.get(f"next state {name}", t) for name, t in states.items()}
            if time.perf_counter() - start > _SECONDS:
                return

    def _error(
        self, names: Sequence[str] | set[str], assigned: Sequence[str], before: dict[str, Moment]
    ) -> StategateError:
        now = self._look()
        roots = {root(name) for name in names}
        found = [name for name in assigned if root(name) in roots] or list(names)
        # In the order of the walk; what is gone after what came.
        found = [n for n in now if n in found] + [n for n in found if n not in now]
        first = now.get(found[0])
        return undeclared(
            self._model,
            found,
            value=first and first.place.value,
            grown=any(name in now and now[name].grew(name, before) for name in found),
            outside=first is None or not first.place.inside,
        )


def _flow(
    run: Run,
    example: Tensors,
    before: dict[str, Moment],
    counts: dict[str, Place],
    uses: set[str],
) -> tuple[Tensors, Flow | None]:
    """One step with these counts watched; no flow where an operation cannot be followed."""
    tensors = [(n, m.place.value) for n, m in before.items() if m.is_tensor]
    flow = Flow([*tensors, *((ARGUMENTS, tensor) for tensor in example.values())])
    for name, place in counts.items():
        assert place.cell is not None
        place.cell.put(Number(place.value, name, uses))
    try:
        with flow:
            return run(example), flow
    except StategateError:
        raise
    except failures():  # what cannot be run like this may be run without
        torch.compiler.reset()  # which has seen it fail, and would not try again
        return {}, None
    finally:
        for place in counts.values():
            assert place.cell is not None
            value = place.cell.get()
            place.cell.put(value.value if type(value) is Number else value)


def _dice() -> tuple[int, ...]:
    """Where the random numbers are that all code shares."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist())
    return tuple(hash(repr(state)) for state in states)
