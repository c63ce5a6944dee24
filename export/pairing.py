"""Which output of an ONNX file feeds which input again: found by name and shape, or refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from stategate.contract import TensorSpec
from stategate.contract.errors import StatePairingError

Tensors = Mapping[str, TensorSpec]

_DIRECTIONS = re.compile(r"(past|present|prev|next|new|input|output|out|in|_?n$|[^a-z0-9])")
_TIMES = re.compile(r"past|present|prev|next|new")
_CACHES = re.compile(r"past|prev|cache|(^|[^a-z])kv([^a-z]|$)")
_ALIKE = 0.6
_SAME = 0.9


def find_pairs(inputs: Tensors, outputs: Tensors) -> tuple[dict[str, str], str]:
    """State pairs, and how they were found.

    Names decide among tensors of equal shape and dtype. Where no names are alike, shapes decide,
    but only if they allow a single assignment that leaves an input to be fed from outside.

    Raises:
        StatePairingError: Nothing fits, something fits twice, or a memory grows.
    """
    _refuse_growing(inputs, outputs)
    candidates = {
        i.name: [o.name for o in outputs.values() if (o.shape, o.dtype) == (i.shape, i.dtype)]
        for i in inputs.values()
    }
    if pairs := _by_name(candidates):
        return pairs, "by name"
    if pairs := _by_shape(candidates):
        return pairs, "by shape alone"
    raise _undecided("no input looks like a state", candidates)


def _by_name(candidates: Mapping[str, list[str]]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name, possible in candidates.items():
        ranked = sorted(((_likeness(name, o), o) for o in possible), reverse=True)
        alike = [(score, o) for score, o in ranked if score >= _ALIKE]
        if not alike:
            continue
        if len(alike) > 1 and alike[0][0] == alike[1][0]:
            raise _undecided(f"input {name!r} fits several outputs equally well", candidates)
        pairs[name] = alike[0][1]
    if len(set(pairs.values())) < len(pairs):
        raise _undecided("two inputs fit the same output best", candidates)
    return pairs


def _by_shape(candidates: Mapping[str, list[str]]) -> dict[str, str]:
    fitting = {name: possible for name, possible in candidates.items() if possible}
    taken = [output for possible in fitting.values() for output in possible]
    unique = len(taken) == len(set(taken)) == len(fitting)
    if not unique or len(fitting) == len(candidates):
        return {}
    return {name: possible[0] for name, possible in fitting.items()}


def lookalikes(inputs: Tensors, outputs: Tensors, pairs: Mapping[str, str]) -> dict[str, str]:
    """Pairs that were not declared and look like states beside those that were."""
    free_inputs = {n: t for n, t in inputs.items() if n not in pairs}
    free_outputs = {n: t for n, t in outputs.items() if n not in pairs.values()}
    try:
        return find_pairs(free_inputs, free_outputs)[0]
    except StatePairingError:
        return {}


def check_pairs(pairs: Mapping[str, str], inputs: Tensors, outputs: Tensors) -> None:
    """Hold declared or found pairs against the graph.

    Raises:
        StatePairingError: A name is unknown, shapes or dtypes differ, a memory grows, or two
            states share an output.
    """
    for name, next_name in pairs.items():
        for side, key, known in (("input", name, inputs), ("output", next_name, outputs)):
            if key not in known:
                raise StatePairingError(
                    f"the graph has no {side} {key!r}",
                    found=f"state pair {name}={next_name}",
                    expected=", ".join(known),
                )
        taken, given = inputs[name], outputs[next_name]
        if _grows(taken, given):
            raise _growing(taken, given)
        if (taken.shape, taken.dtype) != (given.shape, given.dtype):
            raise StatePairingError(
                f"state {name!r} cannot be fed from output {next_name!r}",
                found=f"{taken.dtype} {taken.shape} and {given.dtype} {given.shape}",
                expected="equal shape and dtype",
                remedy="a memory that changes its shape is no constant-size state; "
                "or pin its axes with --dim or --shape",
            )
        if list(pairs.values()).count(next_name) > 1:
            sharing = sorted(n for n, o in pairs.items() if o == next_name)
            raise StatePairingError(
                f"two states are paired with one output {next_name!r}",
                found=", ".join(sharing),
                expected="an output for each state",
            )


def _refuse_growing(inputs: Tensors, outputs: Tensors) -> None:
    for taken in inputs.values():
        larger = [o for o in outputs.values() if _grows(taken, o)]
        kept = [o for o in outputs.values() if (o.shape, o.dtype) == (taken.shape, taken.dtype)]
        if not larger or any(_likeness(taken.name, o.name) >= _ALIKE for o in kept):
            continue
        given = max(larger, key=lambda o: _likeness(taken.name, o.name))
        if _CACHES.search(taken.name.lower()) or _likeness(taken.name, given.name) >= _SAME:
            raise _growing(taken, given)


def _grows(taken: TensorSpec, given: TensorSpec) -> bool:
    """Whether an output is its input made longer along one axis, as key-value caches are."""
    if taken.dtype != given.dtype or len(taken.shape) != len(given.shape):
        return False
    changes = [b - a for a, b in zip(taken.shape, given.shape, strict=True) if a != b]
    return len(changes) == 1 and changes[0] > 0


def _growing(taken: TensorSpec, given: TensorSpec) -> StatePairingError:
    return StatePairingError(
        f"input {taken.name!r} comes back larger as {given.name!r}: a memory that grows with "
        "every step is no constant-size state",
        found=f"{list(taken.shape)} in, {list(given.shape)} out",
        expected="equal shapes",
        remedy="export the model with a cache of fixed size (a ring buffer, or a static cache "
        "written in place), or take one with recurrent state; if it is an ordinary input, "
        "declare the states with --state INPUT=OUTPUT",
    )


def _likeness(a: str, b: str) -> float:
    plain_a, plain_b = (_DIRECTIONS.sub("", name.lower()) for name in (a, b))
    if not plain_a and not plain_b:
        # "past" and "present" say what they are; "input" and "output" do not.
        return float(all(_TIMES.search(name.lower()) for name in (a, b)))
    plain_a, plain_b = plain_a or a.lower(), plain_b or b.lower()
    return difflib.SequenceMatcher(None, plain_a, plain_b).ratio()


def _undecided(what: str, candidates: Mapping[str, list[str]]) -> StatePairingError:
    listed = [
        f"{name} -> {' or '.join(outputs)}" for name, outputs in candidates.items() if outputs
    ]
    return StatePairingError(
        what,
        found="; ".join(listed) or "no input and output of equal shape and dtype",
        expected="one output of equal shape and dtype for each state",
        remedy="declare the pairs: --state INPUT=OUTPUT, once for each state; a model without "
        "state needs no stategate",
    )
