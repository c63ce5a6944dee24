"""The observation contract in C: elements as enumerators, numbers as macros, reset rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stategate.contract import ObservationContract
from stategate.contract.observation import ResetRules, Signal
from stategate.export.c.names import readable


def declarations(contract: ObservationContract | None) -> str:
    """What a header says of it; empty where nobody said anything."""
    if contract is None:
        return ""
    names = _Names()
    parts = [*_rate(contract), *_rules(contract.resets)]
    for side, signals in (("IN", contract.inputs), ("OUT", contract.outputs)):
        for tensor, signal in signals.items():
            parts += _signal(names, names.own(f"{side}_{readable(tensor).upper()}"), signal)
    joints = contract.joints
    parts += names.enum("JOINT", joints.names)
    for field in ("default_positions", "stiffness", "damping"):
        parts += names.numbers(f"JOINT_{field.upper()}", getattr(joints, field))
    return "\n".join(["", "/* What the bundle says about its inputs and outputs. */", *parts, ""])


class _Names:
    """Enumerators, each of its own, whatever characters the names have."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def enum(self, prefix: str, elements: Sequence[str]) -> Iterator[str]:
        """An index for each element."""
        if not elements:
            return
        yield "enum {"
        for index, element in enumerate(elements):
            yield f"    STATEGATE_{self.own(f'{prefix}_{readable(element).upper()}')} = {index},"
        yield "};"
        yield f"#define STATEGATE_{self.own(f'{prefix}_ELEMENTS')} {len(elements)}"

    def numbers(self, name: str, numbers: Iterable[float]) -> Iterator[str]:
        """An initialiser, so that a program that does not use it gets no array."""
        listed = ", ".join(f"{float(number)!r}f" for number in numbers)
        if listed:
            yield f"#define STATEGATE_{self.own(name)} {{{listed}}}"

    def own(self, wish: str) -> str:
        """A name as it is wished for, or with a number where another one has it."""
        name, number = wish, 1
        while name in self._names:
            number += 1
            name = f"{wish}_{number}"
        self._names.add(name)
        return name


def _rate(contract: ObservationContract) -> Iterator[str]:
    if contract.rate_hz is not None:
        yield f"#define STATEGATE_RATE_HZ {contract.rate_hz!r}"


def _rules(rules: ResetRules) -> Iterator[str]:
    for name in ("each_episode", "on_fault", "on_restore", "on_switch"):
        if getattr(rules, name):
            yield f"#define STATEGATE_RESET_{name.upper()} 1"
    if rules.idle_seconds is not None:
        yield f"#define STATEGATE_RESET_IDLE_SECONDS {rules.idle_seconds!r}"


def _signal(names: _Names, prefix: str, signal: Signal) -> Iterator[str]:
    elements = signal.elements()
    yield from names.enum(prefix, elements)
    if not elements:
        return
    for field in ("scale", "offset"):
        if any(getattr(term, field) for term in signal.terms):
            each = dict(zip(signal.names(), signal.each(field), strict=True))
            # In a history every frame of an element has its number.
            yield from names.numbers(
                f"{prefix}_{field.upper()}",
                (each[e] if e in each else each[e[: e.rindex("@t")]] for e in elements),
            )
