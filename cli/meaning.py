"""What a bundle says about its inputs and outputs, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from stategate.contract import ObservationContract
from stategate.contract.observation import ResetRules, Signal, Term

_NAMES = 60  # of elements in one line; --json has them all


def meaning_of(contract: ObservationContract | None) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    if contract is None:
        return
    for kind, signals in (("observes", contract.inputs), ("acts", contract.outputs)):
        for name, signal in signals.items():
            yield kind, f"{name}: {_signal(signal)}"
    joints = contract.joints
    if joints.names:
        numbers = [f for f in ("default_positions", "stiffness", "damping") if getattr(joints, f)]
        more = f"; with {', '.join(numbers)}" if numbers else ""
        yield "joints", f"{_listed(joints.names)}{more}"
    if contract.rate_hz is not None:
        steps = f", {contract.decimation} steps of {contract.sim_dt:g} s" if contract.sim_dt else ""
        yield "rate", f"{contract.rate_hz:g} Hz{steps}"
    rules = _rules(contract.resets)
    if rules:
        yield "resets", ", ".join(rules)
    if contract.source:
        yield "said by", contract.source


def _signal(signal: Signal) -> str:
    parts = [_listed(signal.names())]
    if max(signal.histories(), default=1) > 1:
        frames = sorted(set(signal.histories()))
        parts.append(f"history of {' and '.join(map(str, frames))} frames, {signal.order}")
    parts += [text for term in signal.terms for text in _numbers(term)]
    if signal.normaliser:
        digest = signal.statistics_sha256[:12]
        parts.append(f"normalised {signal.normaliser}{f', statistics {digest}' if digest else ''}")
    return "; ".join(parts)


def _numbers(term: Term) -> Iterator[str]:
    called = f"{term.name} " if term.name else ""
    for field in ("scale", "offset"):
        values = getattr(term, field)
        if values:
            yield f"{called}{field} {', '.join(f'{value:g}' for value in values)}"
    if term.clip is not None:
        yield f"{called}clip {term.clip[0]:g} to {term.clip[1]:g}"
    if term.units:
        yield f"{called}in {term.units}"


def _rules(rules: ResetRules) -> list[str]:
    named = [name for name in rules.__struct_fields__ if getattr(rules, name) is True]
    idle = rules.idle_seconds
    return named if idle is None else [*named, f"after {idle:g} s without a step"]


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
