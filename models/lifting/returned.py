"""Which of the things that forward returns is the memory that it was handed."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import permutations

from torch import nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.slots import described, form_of, is_unset
from stategate.models.lifting.trees import Value, leaves_of

Places = tuple[int, ...] | tuple[str, ...]
"""Where in a tuple or list, or under which keys of a dict."""

_AFFIX = re.compile(r"^(new|next)_|_(new|next|out|after|n|t)$|\d+$")


def places_of_memory(
    module: nn.Module, result: Value, arguments: Mapping[str, Value], returns: Sequence[str]
) -> Places:
    """Where in what forward returned each hidden argument comes back.

    In a dict it has the argument's name. In a tuple the order is that of ``returns``; else memory
    comes last, in the order of the arguments. That is taken where no other part has the form of a
    memory, or where the names in forward's ``return`` bear it out.

    Args:
        module: Its forward is read for names.
        result: What a call of it returned.
        arguments: Hidden arguments, and what each was in the call; None where it has no form yet.
        returns: Names of all that it returns, in order; empty where the user did not say.
    """
    names = list(arguments)
    if not names:
        return ()
    if isinstance(result, Mapping) and set(names) <= result.keys():
        return tuple(names)
    if not isinstance(result, (tuple, list)) or len(result) <= len(names):
        raise TraceError(
            "forward does not return its memory",
            found=described(result),
            expected=f"(outputs ..., {', '.join(names)}), the memory last and in this order, or a "
            "dict with these keys",
        )
    if returns:
        if len(returns) != len(result) or not set(names) <= set(returns):
            raise TraceError(
                "returns= is not what forward returns",
                found=", ".join(returns),
                expected=f"{len(result)} names in order, among them {', '.join(names)}",
            )
        return tuple(list(returns).index(name) for name in names)
    usual = tuple(range(len(result) - len(names), len(result)))
    fits = [{i for i, part in enumerate(result) if _fits(part, arguments[n])} for n in names]
    orders = [
        order
        for order in permutations(range(len(result)), len(names))
        if all(i in fitting for i, fitting in zip(order, fits, strict=True))
    ]
    # Two names of one tensor are no choice.
    identities = [tuple(map(id, leaves_of(part))) for part in result]
    distinct = {tuple(identities[i] for i in order) for order in orders}
    if len(distinct) == 1:
        return usual if usual in orders else orders[0]
    if not orders:
        return usual  # reading it as a state says what is wrong with it
    labels = _names_in_return(module, result)
    stems = [_AFFIX.sub("", label) for label in labels]
    named = tuple(_only(_AFFIX.sub("", name), stems) for name in names)
    candidates = set.union(*fits)
    if named in orders and (named == usual or all(labels[i] for i in candidates)):
        return named
    initials = [
        labels[i] and name.startswith(labels[i]) for name, i in zip(names, usual, strict=True)
    ]
    if usual in orders and all(initials):
        return usual
    outputs = [f"output{i}" for i in range(len(result))]
    remedy = f"lift(..., returns={outputs}), with {', '.join(map(repr, names))} where the memory is"
    if named in orders:
        guess = [names[named.index(i)] if i in named else outputs[i] for i in range(len(result))]
        remedy = f"lift(..., returns={guess}), if forward returns its memory in this place"
    raise TraceError(
        "more than one thing that forward returns may be its memory",
        found=", ".join(
            f"{labels[i] or f'part {i}'}: {described(result[i])}" for i in sorted(candidates)
        ),
        expected=f"to know which of them is {' and which is '.join(names)} in the next call",
        remedy=remedy,
    )


def _fits(part: Value, argument: Value) -> bool:
    """Whether a returned part has the form of an argument, if that has one already."""
    return not is_unset(part) if is_unset(argument) else form_of(part) == form_of(argument)


def _only(name: str, names: list[str]) -> int:
    """Where a name stands that stands there once; else -1, which is in no order."""
    return names.index(name) if names.count(name) == 1 else -1


def _names_in_return(module: nn.Module, result: Value) -> list[str]:
    """The name of each part in every ``return``; empty where it has none or no source is known.

    A name that forward never assigns is what it was handed, and says nothing of the next value.
    """
    unknown = [""] * len(result)
    if hasattr(result, "_fields"):
        return list(result._fields)
    try:
        nodes = [*ast.walk(ast.parse(textwrap.dedent(inspect.getsource(module.forward))))]
    except (OSError, TypeError, SyntaxError):
        return unknown
    assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    returns = {
        tuple(p.id if isinstance(p, ast.Name) and p.id in assigned else "" for p in n.value.elts)
        for n in nodes
        if isinstance(n, ast.Return)
        and isinstance(n.value, (ast.Tuple, ast.List))
        and len(n.value.elts) == len(result)
    }
    return list(returns.pop()) if len(returns) == 1 else unknown
