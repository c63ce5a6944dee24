"""Recorded inputs in one ``.npz``: what a bundle is stepped through, and what it should answer.

Keys: ``input.<name>`` holds ``(steps, *shape)``; ``label.<output>`` holds ``(steps,)`` integers,
the right index of the largest element of that output, or -1 where nothing is judged. A golden
episode also holds what the float model gave: ``output.<name>``, ``gate.<name>`` with a leading
step axis, and ``state.<name>`` after the last step.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import EpisodeError
from stategate.contract.specs import StepSpec

Array = NDArray[Any]

_PARTS = ("input", "label", "output", "gate", "state")


@dataclass(frozen=True, slots=True)
class Episode:
    """Arrays by name; see the module for their shapes."""

    inputs: dict[str, Array]
    labels: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    gates: dict[str, Array] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return min((len(array) for array in self.inputs.values()), default=0)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Inputs of each step; views, not copies."""
        for t in range(self.steps):
            yield {name: array[t, ...] for name, array in self.inputs.items()}

    def to_bytes(self) -> bytes:
        """As an ``.npz`` file; the same episode gives the same bytes."""
        parts = (self.inputs, self.labels, self.outputs, self.gates, self.states)
        arrays = {
            f"{part}.{name}": array
            for part, group in zip(_PARTS, parts, strict=True)
            for name, array in group.items()
        }
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, source: str | Path | bytes) -> Episode:
        """Read an episode from a file or its bytes.

        Raises:
            EpisodeError: It cannot be read, or has keys that no episode has.
        """
        name = "the episode" if isinstance(source, bytes) else str(source)
        groups: dict[str, dict[str, Array]] = {part: {} for part in _PARTS}
        try:
            with np.load(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                for key in file.files:
                    part, _, tensor = key.partition(".")
                    if part not in groups or not tensor:
                        raise EpisodeError(
                            f"{name} has a key that no episode has",
                            found=key,
                            expected="input.<name> or label.<output>",
                        )
                    groups[part][tensor] = file[key]
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as problem:
            raise EpisodeError(
                f"{name} cannot be read",
                found=str(problem),
                expected="an .npz file with input.<name> arrays",
            ) from problem
        return cls(*groups.values())

    def check(self, step: StepSpec) -> None:
        """Hold the episode against a model's signature.

        Raises:
            EpisodeError: Inputs are missing, unknown, of another shape or dtype, of different
                lengths, or there are none.
        """
        wanted = {t.name: t for t in step.inputs}
        if set(self.inputs) != set(wanted):
            raise EpisodeError(
                "the episode's inputs are not the model's",
                found=", ".join(sorted(self.inputs)) or "none",
                expected=", ".join(sorted(wanted)),
            )
        if self.steps == 0:
            raise EpisodeError("the episode is empty", found="0 steps", expected="at least one")
        for name, array in self.inputs.items():
            spec = wanted[name]
            if array.shape[1:] != spec.shape or array.dtype != spec.dtype:
                raise EpisodeError(
                    f"input {name!r} of the episode does not fit the model",
                    found=f"{array.dtype} {list(array.shape)}",
                    expected=f"{spec.dtype} [steps, {', '.join(map(str, spec.shape))}]",
                )
        outputs = {t.name for t in step.outputs}
        unknown = sorted(set(self.labels) - outputs)
        if unknown:
            raise EpisodeError(
                "the episode labels an output that the model does not have",
                found=", ".join(unknown),
                expected=", ".join(sorted(outputs)),
            )
        lengths = {name: len(array) for name, array in (self.inputs | self.labels).items()}
        if len(set(lengths.values())) > 1:
            raise EpisodeError(
                "the episode's arrays differ in length",
                found=lengths,
                expected="one length for all",
            )
