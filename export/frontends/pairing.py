"""Which output of an ONNX file feeds which input again: found by name and shape, or refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from stategate.contract import TensorSpec
from stategate.contract.errors import StatePairingError

Tensors = Mapping[str, TensorSpec]

NO_STATE = "no input looks like a state"
# ONNX itself calls a last state "Y_h", and torch "hy" what follows "hx".
_DIRECTIONS = re.compile(
    r"past|present|prev|next|new|initial|input|output|out|in|^y_(?=[hc])|(?<=^[hc])[xy](?=\d*$)"
    r"|_?n$|[^a-z0-9]"
)
_KINDS = re.compile(r"states?|key_?values?")  # say what it is, and not which one
_TIMES = re.compile(r"past|present|prev|next|new")
_MEMORY = re.compile(
    r"past|present|prev|next|new|state|hidden|memory|cache|carry|cell|recurrent|lstm|gru|rnn|ssm"
    r"|(^|[^a-z])(h|c|hn|cn|hx|cx|mem)([^a-z]|$)"
)
_CACHES = re.compile(r"past|prev|cache|(^|[^a-z])kv([^a-z]|$)")
# What goes around through the world outside, and what counts frames, is no memory of the model.
_OUTSIDE = re.compile(r"(^|[^a-z])(lens?|lengths?|masks?|actions?|rewards?)([^a-z]|$)")
_ALIKE = 0.6
_SAME = 0.9


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the graph itself says of its inputs and outputs."""

    used: AbstractSet[str]  # inputs that some output depends on
    read_on: AbstractSet[str]  # outputs that another output is computed from in the same step
    # outputs that are last states of the nodes that begin from an input, by input
    carried: Mapping[str, AbstractSet[str]] = field(default_factory=dict)


def find_pairs(
    inputs: Tensors, outputs: Tensors, evidence: Evidence | None = None
) -> tuple[dict[str, str], str]:
    """State pairs, and what they were found by.

    Recurrent nodes decide where they begin from an input and give its next value as an output.
    Names decide among tensors of equal shape and dtype. Where no names are alike, shapes decide,
    but only if they allow a single assignment that leaves an input to be fed from outside.
    Evidence decides among pairs by name: where some are read on in the step, or are named as a
    memory, those that are neither are no proposal (``audio_in`` beside ``state_in``). Where none
    is, names have to be the same but for their direction (``goal`` is no start of ``goal_error``).
    """
    _refuse_growing(inputs, outputs)
    used = {n: t for n, t in inputs.items() if evidence is None or n in evidence.used}
    everything = _alike_in_form(used, outputs)
    certain = _by_node(everything, evidence.carried if evidence else {})
    candidates = {
        name: [o for o in possible if o not in certain.values()]
        for name, possible in everything.items()
        if name not in certain and not _OUTSIDE.search(name.lower())
    }
    pairs, how = _by_name(candidates), "by name"
    if pairs and evidence is not None:
        strong = {i: o for i, o in pairs.items() if o in evidence.read_on or _is_memory(i, o)}
        pairs = strong or {i: o for i, o in pairs.items() if _likeness(i, o) >= _SAME}
    if certain:
        pairs, how = certain | pairs, "by name" if pairs else "by its node"
    if not pairs:
        pairs, how = _by_shape(candidates), "by shape alone"
    if not pairs:
        raise _undecided(NO_STATE, everything)
    for side, rest in (("input", {*inputs} - {*pairs}), ("output", {*outputs} - {*pairs.values()})):
        if not rest:
            what = f"every {side} looks like a state, and a step needs one that is none"
            raise _undecided(what, everything)
    return pairs, how


def _is_memory(name: str, next_name: str) -> bool:
    """Whether the names of a pair say that it is a memory, and not only that it goes in and out."""
    return any(_MEMORY.search(each.lower()) for each in (name, next_name))


def _alike_in_form(inputs: Tensors, outputs: Tensors) -> dict[str, list[str]]:
    """Outputs of the shape and dtype of each input."""
    return {
        i.name: [o.name for o in outputs.values() if (o.shape, o.dtype) == (i.shape, i.dtype)]
        for i in inputs.values()
    }


def _by_node(
    candidates: Mapping[str, list[str]], carried: Mapping[str, AbstractSet[str]]
) -> dict[str, str]:
    """Pairs that recurrent nodes leave no doubt of."""
    fitting = {
        name: [o for o in candidates.get(name, []) if o in carried[name]] for name in carried
    }
    everything = [output for possible in fitting.values() for output in possible]
    return {
        name: possible[0]
        for name, possible in fitting.items()
        if len(possible) == 1 and everything.count(possible[0]) == 1
    }


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
    outputs = [output for possible in fitting.values() for output in possible]
    unique = len(outputs) == len(set(outputs)) == len(fitting)
    # Shapes alone say too little where no input would be left to be fed from outside.
    if not unique or len(fitting) == len(candidates):
        return {}
    return {name: possible[0] for name, possible in fitting.items()}


def lookalikes(inputs: Tensors, outputs: Tensors, pairs: Mapping[str, str]) -> dict[str, str]:
    """Pairs that were not declared and look like states beside those that were."""
    free_inputs = {n: t for n, t in inputs.items() if n not in pairs}
    free_outputs = {n: t for n, t in outputs.items() if n not in pairs.values()}
    candidates = _alike_in_form(free_inputs, free_outputs)
    try:
        return _by_name(candidates) or _by_shape(candidates)
    except StatePairingError:
        return {}


def check_pairs(pairs: Mapping[str, str], inputs: Tensors, outputs: Tensors) -> None:
    """Compare pairs with the graph."""
    for name, next_name in pairs.items():
        for side, key, tensors in (("input", name, inputs), ("output", next_name, outputs)):
            if key not in tensors:
                raise StatePairingError(
                    f"the graph has no {side} {key!r}",
                    found=f"state pair {name}={next_name}",
                    expected=", ".join(tensors),
                )
        before, after = inputs[name], outputs[next_name]
        if _grows(before, after):
            raise _growing(before, after)
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise StatePairingError(
                f"state {name!r} and output {next_name!r} differ, and one has to feed the other",
                found=f"{before.dtype} {before.shape} and {after.dtype} {after.shape}",
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
    for before in inputs.values():
        larger = [o for o in outputs.values() if _grows(before, o)]
        equal = [o for o in outputs.values() if (o.shape, o.dtype) == (before.shape, before.dtype)]
        # A larger output is no memory of an input that has one of its own size and name.
        if not larger or any(_likeness(before.name, o.name) >= _ALIKE for o in equal):
            continue
        after = max(larger, key=lambda o: _likeness(before.name, o.name))
        if _CACHES.search(before.name.lower()) or _likeness(before.name, after.name) >= _SAME:
            raise _growing(before, after)


def _grows(before: TensorSpec, after: TensorSpec) -> bool:
    """Whether an output is its input made longer along one axis, as key-value caches are."""
    if before.dtype != after.dtype or len(before.shape) != len(after.shape):
        return False
    changes = [b - a for a, b in zip(before.shape, after.shape, strict=True) if a != b]
    return len(changes) == 1 and changes[0] > 0


def _growing(before: TensorSpec, after: TensorSpec) -> StatePairingError:
    return StatePairingError(
        f"input {before.name!r} comes back larger as {after.name!r}: a memory that grows with "
        "every step is no constant-size state",
        found=f"{list(before.shape)} in, {list(after.shape)} out",
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
    # "state_h" and "new_h" are alike in what is left without "state".
    plain_a, plain_b = (_KINDS.sub("", plain) or plain for plain in (plain_a, plain_b))
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
