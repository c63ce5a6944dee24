"""What the model itself answers to the inputs of a check: finite numbers, or a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stategate.contract import Episode
from stategate.contract.episode import not_finite
from stategate.contract.errors import EpisodeError, ParityError, StategateError
from stategate.contract.failures import failures
from stategate.contract.receipts import InputsRef
from stategate.export.candidate import Arrays, Reference


class Answers:
    """Steps a model through an episode, and keeps count of what is NaN or Inf.

    The runtime takes such an answer for a fault, so a bundle cannot promise one.
    """

    def __init__(self, reference: Reference, episode: Episode, inputs: InputsRef) -> None:
        self._reference, self._episode, self._inputs = reference, episode, inputs
        self._holes: dict[str, list[int]] = {}
        if episode.start:
            begin = getattr(reference, "begin", None)
            if begin is None:
                raise EpisodeError(
                    "the check of this model cannot start from given states",
                    found=", ".join(f"start.{name}" for name in episode.start),
                    remedy="give an episode that starts as the model does",
                )
            begin(episode.start)

    @property
    def are_finite(self) -> bool:
        """Whether all were, so far."""
        return not self._holes

    def step(self, t: int, feed: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states and gates of step ``t``."""
        with readable_errors(self._reference.name, self._episode, self._inputs, t):
            outputs, states, gates = self._reference.step(feed)
        for what, arrays in (("output", outputs), ("state", states), ("gate", gates)):
            for name in not_finite(arrays):
                self._holes.setdefault(f"{what} {name!r}", []).append(t)
        return outputs, states, gates

    def check(self) -> None:
        """Refuse a model some answers of which were not finite."""
        if self.are_finite:
            return
        counted = [
            f"{what} in {len(steps)} of {self._episode.steps} steps, first in step {steps[0]}"
            for what, steps in self._holes.items()
        ]
        raise ParityError(
            f"{self._reference.name} itself gives NaN or Inf: {'; '.join(counted)}",
            found=_spans(self._episode, self._inputs),
            expected="finite outputs, states and gates in every step",
            remedy=_remedy(
                self._episode,
                self._inputs,
                "clamp what log, sqrt or a division of the model takes",
            ),
        )


@contextmanager
def readable_errors(name: str, episode: Episode, inputs: InputsRef, step: int) -> Iterator[None]:
    """Turn whatever a model raises on the inputs of a step into a sentence."""
    try:
        yield
    except StategateError:
        raise
    except failures() as problem:  # a user's module may raise anything
        raise ParityError(
            f"{name} fails on the inputs of step {step}",
            found=f"{type(problem).__name__}: {problem}; {_spans(episode, inputs)}",
            expected="a model that takes every input of the check",
            remedy=_remedy(episode, inputs, "mend the model, or leave these steps out"),
        ) from problem


def _spans(episode: Episode, inputs: InputsRef) -> str:
    spans = [
        f"{name} from {float(array.min()):.4g} to {float(array.max()):.4g}"
        for name, array in episode.inputs.items()
    ]
    return f"on {inputs.words}: {', '.join(spans)}"


def _remedy(episode: Episode, inputs: InputsRef, of_a_recording: str) -> str:
    if inputs.kind == "recording":
        return f"{of_a_recording}; nothing was written"
    first = next(iter(episode.inputs))
    return (
        "give recorded inputs with --episode FILE, or the range that the model is made for with "
        f"--range, such as --range {first}=0:1; nothing was written"
    )
