"""Recorded inputs in one ``.npz``: what a bundle is stepped through, and what it should answer.

Keys: ``input.<name>`` holds ``(steps, *shape)``; ``label.<output>`` holds ``(steps,)`` integers,
the right index of the largest element of that output, or -1 where nothing is judged. A golden
episode also holds what the float model gave: ``output.<name>``, ``gate.<name>`` with a leading
step axis, ``state.<name>`` after the last step, and, where states are stored in fewer bits,
``trail.<name>`` before the first step and after each of the first steps. Any may start from given
states, ``start.<name>`` in the shape of the state; others start as the model does. For a model
with a prologue ``prologue.<name>`` is what that takes. Any may say
``meta.rate_hz``, one number, and ``meta.provenance``, one text: where it comes from; and
``meta.fresh``, true where it does not go on from the file before it in a folder.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import EpisodeError
from stategate.contract.npz import Npz
from stategate.contract.reading import printable, text_with_controls
from stategate.contract.specs import StepSpec

Array = NDArray[Any]

_PARTS = ("input", "label", "output", "gate", "state", "trail", "start", "prologue")
RATE, PROVENANCE, FRESH = "meta.rate_hz", "meta.provenance", "meta.fresh"
FACT_BYTES = 1 << 20
"""Of where an episode comes from, in words; a folder's episodes, joined, name each of its files."""


class Stepper(Protocol):
    """What can begin an episode from given states: a session, or a full pool."""

    def reset(self) -> None:
        """Put every state back to its initial value."""
        ...

    def state(self, name: str) -> Array:
        """A copy of one state."""
        ...

    def load_state(self, states: Mapping[str, Array], /) -> None:
        """Begin an episode from given states."""
        ...

    def begin(self, /, **inputs: Array) -> None:
        """Begin an episode with the bundle's prologue."""
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """Arrays by name; see the module for their shapes.

    Attributes:
        inputs: What the model was given.
        labels: What its outputs are judged by.
        outputs: What the float model answered, in a golden episode.
        gates: The same, gates.
        states: The same, states after the last step.
        trail: The same, states before the first step and after each of the first steps, for
            `stategate.runtime.check.one_step`; none where a run on its own states tells enough.
        rate_hz: Steps per second; None where that is not known.
        provenance: Where it comes from, in words.
        start: States that it starts from, by name, such as those of an encoder; the model's own
            initial values where a state is missing.
        prologue: What the model's prologue takes; where ``start`` is there too, it is what that
            gave.
        resets: Steps before which the memory begins anew; among them 0 where this does not go on
            from the recording before it.
    """

    inputs: dict[str, Array]
    labels: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    gates: dict[str, Array] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)
    trail: dict[str, Array] = field(default_factory=dict)
    rate_hz: float | None = None
    provenance: str = ""
    start: dict[str, Array] = field(default_factory=dict)
    prologue: dict[str, Array] = field(default_factory=dict)
    resets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a rate that no recording has."""
        if self.rate_hz is not None and not (0 < self.rate_hz < math.inf):
            raise EpisodeError("a rate is a positive number of steps a second", found=self.rate_hz)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return min((len(a) if a.ndim else 0 for a in self.inputs.values()), default=0)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Inputs of each step; views, not copies."""
        for t in range(self.steps):
            yield {name: array[t, ...] for name, array in self.inputs.items()}

    def begin(self, stepper: Stepper, states: Iterable[str]) -> None:
        """Put the states in place from which the episode starts; else do nothing.

        Args:
            stepper: At its initial states, or after another episode.
            states: Names of all its states.
        """
        if not self.start:
            if self.prologue:
                stepper.begin(**self.prologue)
            return
        names = set(states)
        if names != set(self.start):
            stepper.reset()
        stepper.load_state({n: self.start.get(n, stepper.state(n)) for n in names})

    def check_one_stream(self) -> None:
        """Refuse several recordings in one, where nobody would reset the memory between them.

        Raises:
            EpisodeError: The memory begins anew in a later step.
        """
        if inner := [step for step in self.resets if 0 < step < self.steps]:
            raise EpisodeError(
                "the episode holds several recordings, and the memory is not reset between them",
                found=f"resets before the steps {', '.join(map(str, inner[:8]))}",
                remedy="give each recording by itself, or the path of them",
            )

    def to_bytes(self) -> bytes:
        """As an ``.npz`` file of one recording; the same episode gives the same bytes."""
        self.check_one_stream()
        named = (self.inputs, self.labels, self.outputs, self.gates, self.states, self.trail)
        parts = (*named, self.start, self.prologue)
        arrays = {
            f"{part}.{name}": array
            for part, group in zip(_PARTS, parts, strict=True)
            for name, array in group.items()
        }
        pickled = sorted(name for name, array in arrays.items() if array.dtype.hasobject)
        if pickled:
            raise EpisodeError("an episode holds numbers only", found=", ".join(pickled))
        if self.rate_hz is not None:
            arrays[RATE] = np.array(float(self.rate_hz))
        if self.provenance:
            arrays[PROVENANCE] = np.array(self.provenance)
        if 0 in self.resets:
            arrays[FRESH] = np.array(True)
        file = io.BytesIO()
        save: Any = np.savez  # its stub reads the keywords of arrays as allow_pickle
        save(file, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, source: str | Path | bytes) -> Episode:
        """Read an episode from a file or its bytes.

        Raises:
            EpisodeError: It cannot be read, is too large to be loaded at once, or has keys that no
                episode has.
        """
        groups: dict[str, dict[str, Array]] = {part: {} for part in _PARTS}
        with Npz(source) as file:
            file.check_whole()
            for key in tensor_keys(file):
                part, _, tensor = key.partition(".")
                groups[part][tensor] = file.load(key)
            rate_hz, provenance, fresh = facts(file)
        *named, start, prologue = groups.values()
        inputs, labels, outputs, gates, states, trail = named
        answers = (outputs, gates, states, trail)
        return cls(inputs, labels, *answers, rate_hz, provenance, start, prologue, (0,) * fresh)

    def check(self, step: StepSpec, *, starts: bool = False) -> None:
        """Hold the episode against a model's signature.

        Args:
            step: The signature.
            starts: Whether who steps it begins it from its own states, see `begin`.

        Raises:
            EpisodeError: Inputs are missing, unknown, of another shape or dtype, of different
                lengths, or there are none; or it starts from states that nobody would load, or
                that the model lacks.
        """
        if not starts:
            refuse_start("the episode", {*self.start, *self.prologue})
        check_states({s.name: (s.shape, s.dtype) for s in step.states}, self.start, "starts from")
        expected = {t.name: t for t in step.inputs}
        if set(self.inputs) != set(expected):
            raise EpisodeError(
                "the episode's inputs are not the model's",
                found=", ".join(sorted(self.inputs)) or "none",
                expected=", ".join(sorted(expected)),
            )
        if self.steps == 0:
            raise EpisodeError("the episode is empty", found="0 steps", expected="at least one")
        for name, array in self.inputs.items():
            spec = expected[name]
            if array.shape[1:] != spec.shape or array.dtype != spec.dtype:
                raise EpisodeError(
                    f"input {name!r} of the episode does not fit the model",
                    found=f"{array.dtype} {list(array.shape)}",
                    expected=f"{spec.dtype} [steps, {', '.join(map(str, spec.shape))}]",
                )
        outputs = {t.name: t for t in step.outputs}
        for name, labels in self.labels.items():
            if name not in outputs:
                raise EpisodeError(
                    "the episode labels an output that the model does not have",
                    found=name,
                    expected=", ".join(sorted(outputs)),
                )
            size = math.prod(outputs[name].shape)
            whole = labels.ndim == 1 and labels.dtype.kind in "iu"
            if not whole or np.any((labels < -1) | (labels >= size)):
                raise EpisodeError(
                    f"the labels of {name!r} are no indices into it",
                    found=f"{labels.dtype} {list(labels.shape)}",
                    expected=f"integers [steps] from -1 (not judged) to {size - 1}",
                )
        self.check_finite()
        self._check_answers(step)
        timed = self.inputs | self.labels | self.outputs | self.gates
        lengths = {name: len(array) for name, array in timed.items()}
        if len(set(lengths.values())) > 1:
            raise EpisodeError(
                "the episode's arrays differ in length",
                found=lengths,
                expected="one length for all",
            )

    def check_finite(self, name: str = "the episode", first_step: int = 0) -> None:
        """Refuse inputs with NaN or Inf: a log with a hole in it is no episode.

        Args:
            name: What the message calls it.
            first_step: Number of its first step, where it is a piece of a longer one.

        Raises:
            EpisodeError: An input is not finite.
        """
        for tensor, array in self.inputs.items():
            if array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            raise EpisodeError(
                f"input {tensor!r} of {name} is not finite",
                found=f"NaN or Inf in {int(bad.sum())} steps, "
                f"the first of them step {first_step + int(bad.argmax())}",
                expected="finite numbers",
                remedy="cut these steps out, or split the recording there",
            )

    def _check_answers(self, step: StepSpec) -> None:
        """A golden episode answers for every output, gate and state; any other for none."""
        if not (self.outputs or self.gates or self.states):
            return
        states = {s.name: (s.shape, s.dtype) for s in step.states}
        promised = (
            ("output", self.outputs, {t.name: (t.shape, t.dtype) for t in step.outputs}, 1),
            ("gate", self.gates, {g.name: (g.shape, "float32") for g in step.gates}, 1),
            ("state", self.states, states, 0),
            *((("trail", self.trail, states, 1),) if self.trail else ()),
        )
        for part, arrays, expected, time_axes in promised:
            # Outputs may be let through by name, see Verification.accepted; a memory never is.
            holes = not_finite(arrays)
            if holes and part != "output":
                raise EpisodeError(
                    f"a {part} of the golden episode is not finite",
                    found=", ".join(holes),
                    expected="finite numbers",
                    remedy="export the bundle again",
                )
            actual = {n: (a.shape[time_axes:], str(a.dtype)) for n, a in arrays.items()}
            if actual != expected:
                raise EpisodeError(
                    f"the golden episode does not answer for every {part} of the model",
                    found=actual,
                    expected=expected,
                )
        reach = {len(array) if array.ndim else 0 for array in self.trail.values()}
        if reach and not (len(reach) == 1 and 2 <= min(reach) <= self.steps + 1):
            raise EpisodeError(
                "the golden episode's trail is none of its first steps",
                found=f"{sorted(reach)} states",
                expected=f"one number for all, from 2 to {self.steps + 1}",
            )

    def resized(self, steps: int) -> Episode:
        """The same inputs and labels cut to ``steps``, or repeated until they are so many."""
        at = np.arange(steps) % self.steps
        return Episode(
            {name: array[at] for name, array in self.inputs.items()},
            {name: array[at] for name, array in self.labels.items()},
            rate_hz=self.rate_hz,
            provenance=self.provenance,
            start=self.start,
            prologue=self.prologue,
            resets=tuple(
                reset + first
                for first in range(0, steps, self.steps)
                for reset in self.resets
                if reset + first < steps
            ),
        )


def refuse_start(name: str, states: Iterable[str]) -> None:
    """Refuse an episode that starts from given states, where nobody would load them.

    Raises:
        EpisodeError: There are some.
    """
    named = ", ".join(sorted(states))
    if named:
        raise EpisodeError(
            f"{name} starts from given states, and this cannot begin with them",
            found=named,
            remedy="give one that starts as the model does",
        )


def check_states(
    specs: Mapping[str, tuple[tuple[int, ...], str]], states: Mapping[str, Array], verb: str
) -> None:
    """Hold states of an episode against those of the model.

    Raises:
        EpisodeError: One is unknown, of another shape or dtype, or not finite.
    """
    for name, array in states.items():
        form = (array.shape, str(array.dtype))
        if form != specs.get(name) or not_finite({name: array}):
            raise EpisodeError(
                f"the episode {verb} a state {name!r} that the model cannot have",
                found=f"{form[1]} {list(form[0])}{', not finite' * (form == specs.get(name))}",
                expected=", ".join(f"{n} {d} {list(s)}" for n, (s, d) in specs.items()),
            )


def not_finite(arrays: Mapping[str, Array]) -> list[str]:
    """Names of the arrays that hold NaN or Inf."""
    return [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]


def tensor_keys(file: Npz) -> list[str]:
    """The keys of an episode's arrays, all of them ``part.name``.

    Raises:
        EpisodeError: There is a key that no episode has, or something that is no number.
    """
    keys = [key for key in file.members if key not in (RATE, PROVENANCE, FRESH)]
    for key in keys:
        part, _, tensor = key.partition(".")
        if part not in _PARTS or not tensor or text_with_controls(key) is not None:
            raise EpisodeError(
                f"{file.name} has a key that no episode has",
                found=printable(key),
                expected=f"input.<name>, label.<output>, {RATE}, {PROVENANCE} or {FRESH}",
            )
        if file.members[key].dtype.kind not in "fiub":
            raise EpisodeError(f"{file.name} holds something that is no number", found=key)
    return keys


def facts(file: Npz) -> tuple[float | None, str, bool]:
    """Rate in steps per second, if it is known, provenance, and whether the memory begins anew.

    Raises:
        EpisodeError: They are of another form.
    """
    forms = ((RATE, "fiu", "one number"), (PROVENANCE, "U", "one text"), (FRESH, "b", "yes or no"))
    for key, kinds, expected in forms:
        member = file.members.get(key)
        odd = member is not None and (member.shape != () or member.dtype.kind not in kinds)
        if member is not None and (odd or member.bytes > FACT_BYTES):
            raise EpisodeError(
                f"{key} of {file.name} is of another form",
                found=f"{member.dtype} {list(member.shape)}",
                expected=expected,
            )
    return (
        float(file.load(RATE)) if RATE in file.members else None,
        printable(file.load(PROVENANCE), FACT_BYTES) if PROVENANCE in file.members else "",
        FRESH in file.members and bool(file.load(FRESH)),
    )
