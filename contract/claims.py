"""What somebody says that they hand a policy: read from Python or a file, and compared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from stategate.contract.errors import RateWarning, SpecError
from stategate.contract.failures import failures
from stategate.contract.observation import (
    Joints,
    ObservationContract,
    Signal,
    is_same_rate,
)
from stategate.contract.reading import RECORD_BYTES, decode_json, read_bounded

if TYPE_CHECKING:
    from stategate.contract.manifest import Manifest

Observes: TypeAlias = "ObservationContract | Mapping[str, Any] | Sequence[str] | Path"
"""A contract, a shorter form of one, or a file of either; see `declared`."""


def declared(
    observes: object, inputs: tuple[str, ...] = (), source: str = ""
) -> ObservationContract:
    """A contract as a user writes it: the record itself, or a shorter form of it.

    A list of names is that of the only input. A mapping by input is the part ``inputs``. A list in
    place of a `Signal` names its elements; a mapping may have the fields of its only `Term`.

    Args:
        observes: A contract, names, a mapping, or a JSON file.
        inputs: Names of the model's inputs.
        source: Where it was read, for the record.

    Raises:
        SpecError: It has fields that no contract has, or values that do not fit.
    """
    if isinstance(observes, ObservationContract):
        return observes
    if isinstance(observes, (str, Path)):
        return declared_in(_read(Path(observes)), inputs, source or Path(observes).name)
    if isinstance(observes, (list, tuple)):
        if len(inputs) != 1:
            raise SpecError(
                "a list of names is for a model of one input",
                found=f"inputs {', '.join(inputs)}",
                expected="names by input",
                remedy="observes={" + ", ".join(f'"{name}": [...]' for name in inputs) + "}",
            )
        observes = {inputs[0]: observes}
    try:
        if not isinstance(observes, Mapping):
            raise msgspec.ValidationError(f"it is {type(observes).__name__}")
        raw = dict(observes)
        if set(raw) <= set(inputs) - set(ObservationContract.__struct_fields__):
            raw = {"inputs": raw}
        for side in ("inputs", "outputs"):
            if isinstance(raw.get(side), Mapping):
                raw[side] = {name: _signal(value) for name, value in raw[side].items()}
        if source:
            raw.setdefault("source", source)
        return msgspec.convert(raw, ObservationContract)
    except msgspec.MsgspecError as problem:
        raise SpecError(
            "this is no observation contract",
            found=problem,
            expected="names of elements, names by input, or a mapping with some of "
            + ", ".join(ObservationContract.__struct_fields__),
            remedy="see docs/guides/observations.md",
        ) from problem


def declared_in(plain: object, inputs: tuple[str, ...], file: str) -> ObservationContract:
    """The same of what a file holds: a text in it is no path to go on with."""
    if isinstance(plain, str):
        raise SpecError(
            "this is no observation contract",
            found=f"a text in {file}",
            expected="names of elements, names by input, or a mapping",
            remedy="see docs/guides/observations.md",
        )
    return declared(plain, inputs, file)


def _read(path: Path) -> object:
    try:
        return decode_json(read_bounded(path, RECORD_BYTES), object)
    except failures(OSError, msgspec.MsgspecError) as problem:
        raise SpecError(
            "the observation contract cannot be read",
            found=f"{path}: {problem}",
            expected="a JSON file",
            remedy="a session reads JSON; export and adopt read YAML too",
        ) from problem


def _signal(raw: object) -> object:
    if isinstance(raw, (list, tuple)):
        return {"terms": [{"elements": raw}]}
    if not isinstance(raw, Mapping):
        return raw
    parts = {key: value for key, value in raw.items() if key in Signal.__struct_fields__}
    term = {key: value for key, value in raw.items() if key not in parts}
    terms = [term] if term else list(parts.get("terms", ()))
    if term and "terms" in parts:
        raise msgspec.ValidationError(f"{', '.join(term)} beside terms")
    return parts | {"terms": [_term(part) for part in terms]}


def _term(raw: object) -> object:
    if not isinstance(raw, Mapping):
        return raw
    singles = {k: [raw[k]] for k in ("scale", "offset") if isinstance(raw.get(k), (int, float))}
    return dict(raw) | singles


def check_caller(
    manifest: Manifest, observes: Observes | None, rate_hz: float | None
) -> ObservationContract | None:
    """Hold what a caller says against a bundle, before anything is opened.

    Returns:
        What the bundle says.

    Raises:
        SpecError: They differ; see `refuse_difference`.
    """
    promised = manifest.observation
    inputs = tuple(tensor.name for tensor in manifest.inputs)
    if observes is not None:
        refuse_difference(promised, declared(observes, inputs))
    if rate_hz is not None:
        refuse_difference(promised, declared({"rate_hz": rate_hz}))
    return promised


def check_loop_rate(
    promised: ObservationContract | None, hz: float, policy: Literal["warn", "raise"] = "warn"
) -> None:
    """Warn of a loop at another rate than the policy's, or refuse it.

    Raises:
        SpecError: The rates differ, and the policy is ``raise``; or there is no such policy.
    """
    if policy not in ("warn", "raise"):
        raise SpecError("unknown policy of a wrong rate", found=policy, expected="warn or raise")
    if promised is None or promised.rate_hz is None:
        return
    try:
        refuse_difference(promised, ObservationContract(rate_hz=hz))
    except SpecError as problem:
        if policy == "raise":
            raise
        warnings.warn(problem.what, RateWarning, stacklevel=3)


def refuse_difference(promised: ObservationContract | None, claimed: ObservationContract) -> None:
    """Refuse a caller that hands over something else than the policy was trained on.

    Args:
        promised: What the bundle says; None where it says nothing.
        claimed: What the caller says; what it leaves open is not compared.

    Raises:
        SpecError: They differ; the sentence names the first index that does.
    """
    promised = promised or ObservationContract()
    for kind, signals, claims in (
        ("input", promised.inputs, claimed.inputs),
        ("output", promised.outputs, claimed.outputs),
    ):
        for name, claim in claims.items():
            if name not in signals or not signals[name].terms:
                raise _unsaid(f"what {kind} {name!r} consists of")
            _compare_signals(f"{kind} {name!r}", signals[name], claim)
    for field in Joints.__struct_fields__:
        values = getattr(claimed.joints, field)
        if values:
            _compare(f"{field} of the joints", getattr(promised.joints, field), values)
    if claimed.rate_hz is not None:
        if promised.rate_hz is None:
            raise _unsaid("its control rate")
        if not is_same_rate(promised.rate_hz, claimed.rate_hz):
            raise SpecError(
                f"the policy runs at {promised.rate_hz:g} Hz, and the caller's loop at "
                f"{claimed.rate_hz:g} Hz",
                remedy=f"step it {promised.rate_hz:g} times a second, or train it at the other "
                "rate",
            )


def _compare_signals(what: str, signal: Signal, claim: Signal) -> None:
    if claim.terms:
        names, frames = signal.names(), signal.histories()
        _compare(what, names, claim.names())
        for index, (right, wrong) in enumerate(zip(frames, claim.histories(), strict=True)):
            if right != wrong:
                raise SpecError(
                    f"{what} takes {right} frames of {names[index]!r} (index {index}), and the "
                    f"caller gives {wrong}",
                    expected=f"a history of {right} frames, the oldest first, {signal.order}",
                )
        if signal.order != claim.order and max(frames) > 1:
            pairs = zip(signal.elements(), claim.elements(), strict=False)
            parted = [index for index, (right, wrong) in enumerate(pairs) if right != wrong]
            # Of one element alone both orders are one; without sizes nobody can tell.
            if parted or not signal.elements():
                place = f": they differ from index {parted[0]} on" if parted else ""
                raise SpecError(
                    f"the history of {what} is stored {signal.order}, and the caller's "
                    f"{claim.order}{place}"
                )
        for field in ("scale", "offset", "clip", "units"):
            if any(getattr(term, field) for term in claim.terms):
                _compare(f"{field} of {what}", signal.each(field), claim.each(field))
    if claim.normaliser and signal.normaliser != claim.normaliser:
        raise SpecError(
            f"{what} is normalised {signal.normaliser or 'nobody says where'}, and the caller says "
            f"{claim.normaliser}",
        )


def _compare(what: str, values: tuple[Any, ...], claims: tuple[Any, ...]) -> None:
    if not values:
        raise _unsaid(what)
    for index, (right, wrong) in enumerate(zip_longest(values, claims)):
        numbers = isinstance(right, float) and isinstance(wrong, float)
        # Files print three to seven digits of a number.
        if right == wrong or (numbers and math.isclose(right, wrong, rel_tol=1e-5)):
            continue
        place = None
        if isinstance(right, str):
            at = f"at index {claims.index(right)}" if right in claims else "nowhere"
            place = f"the caller has {right!r} {at}"
        pair = ["nothing" if value is None else repr(value) for value in (right, wrong)]
        raise SpecError(
            f"{what} has {pair[0]} at index {index}, and the caller gives {pair[1]}",
            found=place,
            expected=", ".join(map(str, values)),
        )


def _unsaid(what: str) -> SpecError:
    return SpecError(
        f"the bundle does not say {what}, so nothing can be compared with it",
        remedy="make the bundle again with --observes FILE, or leave observes= and rate_hz= out",
    )
