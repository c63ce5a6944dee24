"""Which topics or columns of a recording become which inputs: names, units, types, times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import EpisodeError, SpecError
from stategate.contract.reading import read_bounded
from stategate.contract.specs import Record
from stategate.runtime.base.buffers import Array
from stategate.runtime.trust.policy import toml

_FILE_BYTES = 1 << 20
_PART = re.compile(r"(?P<field>[^\[\]{}]+)(\{(?P<elements>[^{}]*)\})?(\[(?P<unit>[^\[\]]*)\])?")
_TURN = 2 * math.pi
# What units measure, and how many of the first unit of that one is.
_MEASURES = {
    "angle": {"rad": 1.0, "deg": _TURN / 360, "rev": _TURN},
    "angular velocity": {"rad/s": 1.0, "deg/s": _TURN / 360, "rpm": _TURN / 60},
    "length": {"m": 1.0, "cm": 1e-2, "mm": 1e-3},
    "velocity": {"m/s": 1.0, "mm/s": 1e-3},
    "acceleration": {"m/s2": 1.0, "g": 9.80665},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "force": {"N": 1.0},
    "torque": {"Nm": 1.0},
    "current": {"A": 1.0, "mA": 1e-3},
    "voltage": {"V": 1.0},
    "share": {"1": 1.0, "%": 1e-2, "u8": 1 / 255},
}
UNITS = {u: (kind, size) for kind, units in _MEASURES.items() for u, size in units.items()}
Positive = Annotated[float, msgspec.Meta(gt=0)]
Way = Literal["hold", "linear"]


class Part(Record, frozen=True):
    """One field of a recording, or some of its elements."""

    field: str
    elements: tuple[str, ...] = ()  # names, in the order that the model takes; empty for all
    unit: str = ""  # as recorded, or FROM>TO

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``FIELD{ELEMENT,...}[UNIT]``."""
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not of the form FIELD{{ELEMENT,...}}[UNIT]")
        names = match["elements"]
        elements = tuple(n.strip() for n in names.split(",")) if names is not None else ()
        if names is not None and (not all(elements) or len(set(elements)) < len(elements)):
            raise ValueError(f"{text!r} names an element twice, or one without a name")
        part = cls(match["field"].strip(), elements, (match["unit"] or "").replace(" ", ""))
        part.factor  # noqa: B018  (refuses an unknown unit)
        return part

    @property
    def factor(self) -> float | None:
        """What a recorded number is multiplied by; None for nothing."""
        if not self.unit:
            return None
        units = self.unit.split(">")
        unknown = [unit for unit in units if unit not in UNITS]
        if unknown or len(units) > 2:
            raise ValueError(f"{unknown or units} is no unit; known are {', '.join(UNITS)}")
        kinds = {UNITS[unit][0] for unit in units}
        if len(kinds) > 1:
            raise ValueError(f"[{self.unit}] turns one kind of thing into another: {kinds}")
        return None if len(units) == 1 else UNITS[units[0]][1] / UNITS[units[1]][1]

    @property
    def turn(self) -> float:
        """A whole turn in the recorded unit; infinite for what is no angle."""
        kind, size = UNITS[self.unit.split(">")[0]] if self.unit else ("", 1.0)
        return _TURN / size if kind == "angle" else math.inf

    def __str__(self) -> str:
        elements = f"{{{','.join(self.elements)}}}" if self.elements else ""
        return self.field + elements + (f"[{self.unit}]" if self.unit else "")


class Input(Record, frozen=True, forbid_unknown_fields=True):
    """What one input of the model takes."""

    source: str | tuple[str, ...] = msgspec.field(name="from")  # fields, joined in this order
    # of the input; float32 for recorded floats and the recorded one otherwise, if empty
    dtype: str = ""
    # of one step; ``[1, elements]`` if empty, and ``[1, ...]`` for images
    shape: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    resample: Way | None = None  # for this input alone
    # for this input alone; ``inf`` where its last value holds for ever
    gap_s: Positive | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The fields."""
        texts = self.source.split("+") if isinstance(self.source, str) else self.source
        return tuple(Part.parse(text) for text in texts)


class Map(Record, frozen=True, forbid_unknown_fields=True):
    """How a recording becomes episodes; a file in TOML has the same names."""

    inputs: dict[str, Input | str] = {}  # by name of the input, or ``label.OUTPUT`` for labels
    # steps per second; that of the recording if it has one, and None
    rate_hz: Positive | None = None
    resample: Way = "hold"  # ``hold`` takes the newest value, ``linear`` goes from one to the next
    # a longer silence is a gap; three times the usual one, and three steps, if None
    gap_s: Positive | None = None
    gaps: Literal["split", "refuse"] = "split"  # whether a gap begins a new episode, or is refused
    # which time of a message counts; of a table its column with a unit, such as ``t[s]``, or
    # ``rows`` where each row is a step
    time: str = ""
    episode: str = ""  # column of a table whose value changes where an episode begins
    # whether messages whose times go backwards are refused, or sorted
    order: Literal["refuse", "sort"] = "refuse"

    @property
    def chosen(self) -> dict[str, Input]:
        """The inputs, each in full."""
        return {n: Input(i) if isinstance(i, str) else i for n, i in self.inputs.items()}

    @classmethod
    def read(cls, texts: Iterable[str], settings: Iterable[str] = ()) -> Map:
        """Put a mapping together.

        Args:
            texts: Files in TOML, and ``INPUT=FIELD{ELEMENT,...}[UNIT]``, joined by ``+``.
            settings: ``NAME=VALUE`` of the other attributes.

        Raises:
            EpisodeError: One is of another form, or stands there twice.
        """
        tables: dict[str, Any] = {}
        try:
            for text in texts:
                name, equals, source = text.partition("=")
                if equals and not Path(text).is_file():
                    _add(tables, "inputs", {name.strip(): source.strip()})
                    continue
                raw = toml(read_bounded(text, _FILE_BYTES), "recordings")
                for key, value in dict(raw).items():
                    _add(tables, key, value)
            for setting in settings:
                name, _, value = setting.partition("=")
                _add(tables, name, value)
            read = msgspec.convert(tables, cls, strict=False)
            for chosen in read.chosen.values():
                chosen.parts  # noqa: B018  (refuses units and forms)
                if chosen.dtype:
                    dtype_named(chosen.dtype)
        except (OSError, ValueError, SpecError) as problem:
            raise EpisodeError(
                "this says not how a recording is read",
                found=str(problem).partition("\n")[0],
                expected="a file in TOML, or INPUT=FIELD, INPUT=FIELD{ELEMENT,...}[UNIT], and "
                f"settings among {', '.join(cls.__struct_fields__[1:])}",
            ) from problem
        return read


def _add(tables: dict[str, Any], key: str, value: Any) -> None:
    if key == "inputs" and isinstance(value, Mapping):
        for name, one in value.items():
            into = tables.setdefault("inputs", {})
            if name in into:
                raise ValueError(f"input {name!r} is mapped twice")
            into[name] = one
    elif key in tables:
        raise ValueError(f"{key} is said twice")
    else:
        tables[key] = value


def as_input(parts: list[Array], chosen: Input, name: str) -> Array:
    """Values of an input's parts, each ``(steps, ...)``, in the type and shape that it takes."""
    scaled = []
    for values, part in zip(parts, chosen.parts, strict=True):
        factor = part.factor
        scaled.append(values if factor is None else values.astype(np.float64) * factor)
    steps = len(scaled[0])
    if len(scaled) > 1:
        scaled = [values.reshape(steps, -1) for values in scaled]
    joined = scaled[0] if len(scaled) == 1 else np.concatenate(scaled, axis=1)
    if name.startswith("label."):
        dtype, shape = chosen.dtype or "int64", chosen.shape
        joined = joined.reshape(steps, -1)
        joined = joined[:, 0] if joined.shape[1] == 1 else joined
    else:
        kind = joined.dtype.kind
        dtype = chosen.dtype or ("float32" if kind == "f" else joined.dtype.name)
        own = joined.shape[1:] if joined.ndim > 1 else (1,)
        shape = chosen.shape or (1, *own)
    target = dtype_named(dtype).numpy
    if math.prod(shape) != math.prod(joined.shape[1:]):
        raise EpisodeError(
            f"{name!r} has another number of elements than the recording",
            found=f"{list(joined.shape[1:])} in {', '.join(map(str, chosen.parts))}",
            expected=f"{list(shape)}",
        )
    with np.errstate(all="ignore"):
        cast = joined.astype(target)
        # Floats may be rounded to fewer bits; whole numbers, and what becomes whole, stay equal.
        exact = joined.dtype.kind == "f" and cast.dtype.kind == "f"
        changed = ~np.isfinite(cast) & np.isfinite(joined) if exact else cast != joined
    if np.any(changed):
        at = int(np.argmax(changed.reshape(steps, -1).any(axis=1)))
        raise EpisodeError(
            f"a number of {name!r} is no {dtype}",
            found=f"{joined.reshape(steps, -1)[at].ravel()[:4]}, recorded as {joined.dtype}",
            expected="numbers that stay what they are",
            remedy='say another dtype in the mapping: [inputs.NAME] dtype = "float64"',
        )
    return np.ascontiguousarray(cast.reshape(steps, *shape))
