"""Which of the things that forward returns is the memory that it was handed."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import permutations

from torch import nn
from torch.utils import _pytree as pytree

from stategate.contract.errors import TraceError
from stategate.models.lifting.slots import Value, form_of, is_unset, told

_AFFIX = re.compile(r"^(new|next)_|_(new|next|out|after|n|t)$|\d+$")


def places_of_memory(
    module: nn.Module, result: Value, arguments: Mapping[str, Value], returns: Sequence[str]
) -> tuple[int, ...]:
    """Where in what forward returned each hidden argument comes back.

    The order is that of ``returns``; else memory comes last, in the order of the arguments. That
    is taken where no other part has the form of a memory, or where the names in forward's
    ``return`` bear it out.

    Args:
        module: Its forward is read for names.
        result: What a call of it returned.
        arguments: Hidden arguments, and what each was in the call; None where it has no form yet.
        returns: Names of all that it returns, in order; empty where the user did not say.

    Raises:
        TraceError: Memory is not returned, or another order fits as well.
    """
    names = list(arguments)
    if not names:
        return ()
    if not isinstance(result, (tuple, list)) or len(result) <= len(names):
        raise TraceError(
            "forward does not return its memory",
            found=told(result),
            expected=f"(outputs ..., {', '.join(names)}): the memory last, in this order",
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
    distinct = {tuple(_identity(result[i]) for i in order): order for order in reversed(orders)}
    if len(distinct) == 1:
        return usual if usual in orders else orders[0]
    if not orders:
        return usual  # reading it as a state says what is wrong with it
    said = _returned_names(module, result)
    exact = tuple(_only(_stem(name), [_stem(part) for part in said]) for name in names)
    candidates = set.union(*fits)
    if exact in orders and (exact == usual or all(said[i] for i in candidates)):
        return exact
    initials = tuple(said[i] and names[k].startswith(said[i]) for k, i in enumerate(usual))
    if usual in orders and all(initials):
        return usual
    example = f"returns=[{', '.join(repr(f'output{i}') for i in range(len(result)))}]"
    remedy = f"lift(..., {example}), with {', '.join(map(repr, names))} where the memory is"
    if exact in orders:
        guess = [names[exact.index(i)] if i in exact else f"output{i}" for i in range(len(result))]
        remedy = f"lift(..., returns={guess}), if forward returns its memory in this place"
    raise TraceError(
        "more than one thing that forward returns may be its memory",
        found=", ".join(f"{said[i] or f'part {i}'}: {told(result[i])}" for i in sorted(candidates)),
        expected=f"to know which of them is {' and which is '.join(names)} in the next call",
        remedy=remedy,
    )


def _fits(part: Value, argument: Value) -> bool:
    """Whether a returned part has the form of an argument, if that has one already."""
    return not is_unset(part) if is_unset(argument) else form_of(part) == form_of(argument)


def _identity(part: Value) -> tuple[int, ...]:
    return tuple(id(leaf) for leaf in pytree.tree_leaves(part))


def _stem(name: str) -> str:
    return _AFFIX.sub("", name)


def _only(name: str, among: list[str]) -> int:
    return among.index(name) if among.count(name) == 1 else -1


def _returned_names(module: nn.Module, result: Value) -> list[str]:
    """The name of each part in every ``return``; empty where it has none or no source is known.

    A name that forward never assigns is what it was handed, and says nothing of the next value.
    """
    unknown = [""] * len(result)
    if hasattr(result, "_fields"):
        return list(result._fields)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(module.forward)))
    except (OSError, TypeError, SyntaxError):
        return unknown
    nodes = list(ast.walk(tree))
    assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Return):
            parts = node.value.elts if isinstance(node.value, (ast.Tuple, ast.List)) else []
            if len(parts) != len(result):
                continue
            names = (part.id if isinstance(part, ast.Name) else "" for part in parts)
            found.add(tuple(name if name in assigned else "" for name in names))
    return list(found.pop()) if len(found) == 1 else unknown
