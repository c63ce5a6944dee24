"""Making a step of a module that keeps its memory to itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.copies import copied
from stategate.models.lifting.first_step import slot_of, started
from stategate.models.lifting.lifted import Lifted as Lifted
from stategate.models.lifting.programs import module_of
from stategate.models.lifting.queues import Queued, rows_of_queue
from stategate.models.lifting.slots import (
    Own,
    as_tensor,
    is_unset,
    memory_like,
    put,
    value_at,
)
from stategate.models.lifting.trees import Inputs, Value, flattened, leaves_of


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
    queues = {name: rows for name in names if (rows := rows_of_queue(start, name))}
    if len(queues) > 1:
        raise TraceError(
            "a step fills one queue of actions",
            found=", ".join(queues),
            remedy="put what belongs together into one tensor",
        )
    names = tuple(name for name in names if name not in queues)
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
    parts = (
        module,
        inputs,
        [slots[name] for name in names],
        [slots[name] for name in arguments],
        (outputs,) if isinstance(outputs, str) else outputs,
        returns,
        untouched,
        start.places,
    )
    if queues:
        (queue, rows), *_ = queues.items()
        return Queued(*parts, queue=queue, rows=rows)
    lifted = Lifted(*parts)
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
