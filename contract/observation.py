"""What the numbers of a step mean: names in their order, scales, history, rate, reset rules.

A policy that is handed a left knee for a right one, one frame for a history, or 100 Hz for 50, runs
and is wrong. So the bundle says what it was trained on, and a session compares.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal

import msgspec

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StepSpec

RATE_TOLERANCE = 0.01
"""Share by which two rates may differ and be one: 29.97 Hz is 30."""

Numbers = tuple[float, ...]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e12)]  # and so neither infinite nor NaN


class Term(Record, frozen=True):
    """Elements of an input or output that belong together, such as the positions of all joints.

    Attributes:
        name: Name of them all; may be empty where each has a name.
        elements: Name of each, in order; empty where they have none.
        size: How many in one frame; 0 where nobody said.
        scale: What a measured value is multiplied by before it is handed in, or what an output is
            multiplied by before it is used; one number for all or one each, empty for 1.
        offset: What is added after that.
        clip: Lowest and highest value that is handed in, or used; None for any.
        units: Of the unscaled value, such as ``rad/s``.
        history: Frames that the tensor holds, the oldest first.
    """

    name: str = ""
    elements: tuple[str, ...] = ()
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    scale: Numbers = ()
    offset: Numbers = ()
    clip: tuple[float, float] | None = None
    units: str = ""
    history: Annotated[int, msgspec.Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        """Fill in the size, and check that there is a number for each element."""
        if not self.size:
            msgspec.structs.force_setattr(self, "size", len(self.elements))
        if not self.name and not self.elements:
            raise SpecError("a term has neither a name nor names for its elements")
        counts = {"elements": len(self.elements)} if self.elements else {}
        for field in ("scale", "offset"):
            if len(getattr(self, field)) > 1:
                counts[field] = len(getattr(self, field))
        for field, count in counts.items():
            if self.size and count != self.size:
                raise SpecError(
                    f"term {self.name!r} has another number of elements than of {field}",
                    found=f"{count} {field} for {self.size} elements",
                )
        if not all(map(math.isfinite, (*self.scale, *self.offset, *(self.clip or ())))):
            raise SpecError(f"term {self.name!r} has a scale, offset or clip that is not finite")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise SpecError(f"term {self.name!r} is clipped to nothing", found=list(self.clip))

    def names(self) -> tuple[str, ...]:
        """Name of each element of one frame; of the term alone where its size is not known."""
        if self.elements:
            return tuple(f"{self.name}.{e}" if self.name else e for e in self.elements)
        return tuple(f"{self.name}[{i}]" for i in range(self.size)) or (self.name,)

    def each(self, field: str) -> tuple[Any, ...]:
        """Scale, offset, clip or units of each of `names`."""
        value = getattr(self, field)
        if field in ("scale", "offset"):
            values: Numbers = value or (float(field == "scale"),)
            return values * len(self.names()) if len(values) == 1 else values
        return (value,) * len(self.names())


class Signal(Record, frozen=True):
    """What one input or output consists of.

    Attributes:
        terms: In the order of the tensor's elements.
        order: Of a history: ``time-first`` has whole frames one after the other, ``term-first``
            the whole history of one term, then that of the next.
        normaliser: ``in-graph`` where the step normalises what it is handed, ``as-given`` where it
            takes normalised values; empty where nobody said.
        statistics_sha256: Digest of the normaliser's mean and deviation; empty without them.
    """

    terms: tuple[Term, ...] = ()
    order: Literal["time-first", "term-first"] = "time-first"
    normaliser: Literal["", "in-graph", "as-given"] = ""
    statistics_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse one name for two elements: nobody could tell whether they are swapped."""
        twice = [name for name, count in Counter(self.names()).items() if count > 1]
        if twice:
            raise SpecError("two elements have one name", found=", ".join(twice))

    def names(self) -> tuple[str, ...]:
        """Name of each element of one frame, in order."""
        return tuple(name for term in self.terms for name in term.names())

    def histories(self) -> tuple[int, ...]:
        """Frames of each of `names`."""
        return tuple(term.history for term in self.terms for _ in term.names())

    def each(self, field: str) -> tuple[Any, ...]:
        """Scale, offset, clip or units of each of `names`."""
        return tuple(value for term in self.terms for value in term.each(field))

    def elements(self) -> tuple[str, ...]:
        """Name of each element of the tensor, ``knee@t-1`` before ``knee@t``; empty if unknown."""
        if not all(term.size for term in self.terms):
            return ()
        frames: list[list[str]] = []
        for term in self.terms:
            ages = range(term.history - 1, -1, -1)
            marks = [f"@t-{age}" if age else "@t" for age in ages] if term.history > 1 else [""]
            frames.append([name + mark for mark in marks for name in term.names()])
        if self.order == "term-first" or not frames:
            return tuple(name for names in frames for name in names)
        # The newest frames stand last, also where a term has fewer of them.
        steps = max(term.history for term in self.terms)
        ordered = []
        for age in range(steps - 1, -1, -1):
            for term, names in zip(self.terms, frames, strict=True):
                if age < term.history:
                    at = (term.history - 1 - age) * term.size
                    ordered += names[at : at + term.size]
        return tuple(ordered)


class Joints(Record, frozen=True):
    """The joints that the actions move, in their order.

    Attributes:
        names: Name of each.
        default_positions: Positions that an action of zero means, rad or m.
        stiffness: Gains of the joint controllers, N m/rad or N/m.
        damping: N m s/rad or N s/m.
    """

    names: tuple[str, ...] = ()
    default_positions: Numbers = ()
    stiffness: Numbers = ()
    damping: Numbers = ()

    def __post_init__(self) -> None:
        """Check that every joint has a number."""
        if len(set(self.names)) < len(self.names):
            raise SpecError("two joints have one name", found=", ".join(self.names))
        for field in ("default_positions", "stiffness", "damping"):
            values = getattr(self, field)
            if values and (len(values) != len(self.names) or not all(map(math.isfinite, values))):
                raise SpecError(
                    f"{field} of the joints is not one finite number for each joint",
                    found=f"{len(values)} numbers for {len(self.names)} joints",
                )


class ResetRules(Record, frozen=True):
    """When the memory begins anew without anybody calling ``reset``.

    Attributes:
        each_episode: Where an episode of a recording or an environment begins.
        on_fault: After a step that failed, whatever the session's policy answers.
        on_restore: When a snapshot is taken back: counters and budgets go on, the memory does not.
        on_switch: When a memory was kept by another bundle than this one, weights alike or not.
        idle_seconds: After a longer time without a step; None for never.
    """

    each_episode: bool = False
    on_fault: bool = False
    on_restore: bool = False
    on_switch: bool = False
    idle_seconds: Positive | None = None


class ObservationContract(Record, frozen=True):
    """What a policy was trained to see and to move, as far as somebody said it.

    Attributes:
        inputs: By input name.
        outputs: By output name.
        joints: What the actions move.
        rate_hz: Steps per second.
        sim_dt: Seconds of one step of the simulator that it was trained in.
        decimation: Simulator steps in one step of the policy.
        resets: When the memory begins anew.
        source: Where all this was read.
    """

    inputs: dict[str, Signal] = {}
    outputs: dict[str, Signal] = {}
    joints: Joints = Joints()
    rate_hz: Positive | None = None
    sim_dt: Positive | None = None
    decimation: Annotated[int, msgspec.Meta(ge=1)] | None = None
    resets: ResetRules = ResetRules()
    source: str = ""

    def __post_init__(self) -> None:
        """Work out the rate where the simulator says it, and refuse one that contradicts it."""
        if self.sim_dt is None or self.decimation is None:
            return
        trained_hz = 1.0 / (self.sim_dt * self.decimation)
        if self.rate_hz is None:
            # 1 / (0.005 * 4) is 50 to a few bits, and 50 is what is meant.
            msgspec.structs.force_setattr(self, "rate_hz", float(f"{trained_hz:.9g}"))
        elif not is_same_rate(self.rate_hz, trained_hz):
            raise SpecError(
                "the control rate contradicts the simulator's step",
                found=f"{self.rate_hz:g} Hz",
                expected=f"{trained_hz:g} Hz: {self.decimation} steps of {self.sim_dt:g} s",
            )

    def check(self, step: StepSpec, sessions: int = 1) -> None:
        """Hold it against the tensors that it describes.

        Raises:
            SpecError: It names a tensor that the model lacks, or of another size.
        """
        for kind, signals, tensors in (
            ("input", self.inputs, step.inputs),
            ("output", self.outputs, step.outputs),
        ):
            shapes = {tensor.name: tensor.shape for tensor in tensors}
            for name, signal in signals.items():
                if name not in shapes:
                    raise SpecError(
                        f"the observation contract describes an {kind} that the model lacks",
                        found=name,
                        expected=", ".join(shapes),
                    )
                named, size = len(signal.elements()), math.prod(shapes[name]) // sessions
                if named and named != size:
                    raise SpecError(
                        f"the observation contract names another number of elements of {name!r}",
                        found=f"{named} names, history included",
                        expected=f"{size} elements of {list(shapes[name])}",
                        remedy="give every element a name, in the order of the tensor, and history "
                        "as the number of frames that it holds",
                    )

    def filled_from(self, other: ObservationContract | None) -> ObservationContract:
        """This contract, and what it leaves open from another one, tensor by tensor."""
        if other is None:
            return self
        own, rest = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        empty = msgspec.structs.asdict(ObservationContract())
        merged = {name: own[name] if own[name] != empty[name] else rest[name] for name in own}
        for side in ("inputs", "outputs"):
            merged[side] = rest[side] | own[side]
        if own["rate_hz"] is not None and own["sim_dt"] is None and own["decimation"] is None:
            merged["sim_dt"] = merged["decimation"] = None  # the rate that was declared decides
        merged["source"] = "; ".join(filter(None, (self.source, other.source)))
        return ObservationContract(**merged)


def is_same_rate(a: float, b: float) -> bool:
    """Whether two rates in Hz are one, `RATE_TOLERANCE` apart at most."""
    return math.isclose(a, b, rel_tol=RATE_TOLERANCE)
