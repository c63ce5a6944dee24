"""The reference of a stream: the untouched file, over the whole sequence at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from stategate.contract import Episode
from stategate.contract.errors import ParityError
from stategate.export.candidate import Arrays, Reference
from stategate.export.frontends.lifting.lift import Lifted
from stategate.export.frontends.lifting.probe import open_every_axis
from stategate.export.frontends.lifting.work import Course
from stategate.export.frontends.untrusted import run_within_limits, unoptimised

_FRAMES = 40_000  # of all runs together, for answers that a sequence has once
_ALIKE = 1e-5


class WholeSequence:
    """Runs a file over whole sequences."""

    def __init__(
        self,
        graph: bytes,
        hop: int,
        axes: Mapping[str, int],
        results: Mapping[str, Course | None],
        fixed: Arrays,
    ) -> None:
        self._hop, self._axes, self._fixed = hop, axes, fixed
        model = onnx.load_model_from_string(graph)
        open_every_axis(model.graph)
        self._session = unoptimised(model.SerializeToString())
        self._names = list(results)
        self.running = {name: course for name, course in results.items() if course is not None}

    def run(self, inputs: Arrays, more: Arrays | None = None) -> dict[str, np.ndarray]:
        """All outputs for inputs ``(steps, *shape)`` with a time axis, and for more without one."""
        feed = {
            name: np.concatenate(list(array), self._axes[name]) for name, array in inputs.items()
        }
        arrays = run_within_limits(
            self._session, self._names, {**feed, **self._fixed, **(more or {})}
        )
        return dict(zip(self._names, arrays, strict=True))

    def at(self, results: Arrays, step: int) -> dict[str, np.ndarray]:
        """What the outputs with a time axis say of one step."""
        answers = {}
        for name, course in self.running.items():
            count = int(self._hop * course.rate)
            frames = range(step * count, (step + 1) * count)
            answers[name] = np.take(results[name], frames, course.axis)
        return answers


class StreamReference:
    """Answers of the untouched file over the whole recording, step by step.

    A file that gives one answer for a sequence is run over its beginnings: all of them, or as many
    as `_FRAMES` allow. In the steps between it is the lifted graph without optimisations that
    answers, and it must agree with the file in all others.
    """

    def __init__(
        self,
        graph: bytes,
        stream: Lifted,
        fixed: Arrays,  # constant inputs, and what explicit states start with
        episode: Episode,
        plain: Reference,  # the lifted graph in plain calls, which knows the states
        pairs: Mapping[str, str],  # of the states that the file has itself
    ) -> None:
        self._whole = WholeSequence(graph, stream.hop, stream.axes, stream.results, fixed)
        self._plain, self._episode, self._pairs = plain, episode, pairs
        self._once = [
            name
            for name, course in stream.results.items()
            if course is None and name not in pairs.values()
        ]
        self._lengths = _lengths(episode.steps, stream.hop, all_of_them=bool(self._once))
        self._answers = self._whole.run(episode.inputs)
        self._steps = 0
        lengths = f"{len(self._lengths)} lengths up to {episode.steps * stream.hop:,} frames"
        self.name = (
            f"the untouched file over whole sequences, {lengths} "
            f"(onnxruntime {onnxruntime.__version__} run(), optimisations off)"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the check did not see."""
        notes: tuple[str, ...] = getattr(self._plain, "notes", ())
        if self._once and len(self._lengths) < self._episode.steps:
            notes += (
                f"output {', '.join(self._once)} has one answer for a sequence, and was compared "
                f"with the file after {len(self._lengths)} of {self._episode.steps} steps",
            )
        return notes

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step, and no gates."""
        t = self._steps
        self._steps += 1
        outputs, states, gates = self._plain.step(inputs)
        answers = {**outputs, **self._whole.at(self._answers, t)}
        if self._steps in self._lengths:
            beginning = {name: a[: self._steps] for name, a in self._episode.inputs.items()}
            shorter = self._whole.run(beginning)
            self._check_causal(shorter)
            states = {**states, **{name: shorter[after] for name, after in self._pairs.items()}}
            answers |= {name: shorter[name] for name in self._once if name in answers}
        return {name: answers[name] for name in outputs}, states, gates

    def _check_causal(self, shorter: Arrays) -> None:
        for name, course in self._whole.running.items():
            before = shorter[name]
            longer = np.take(self._answers[name], range(before.shape[course.axis]), course.axis)
            distance = gap(before, longer)
            if distance > _ALIKE:
                raise ParityError(
                    "the file itself says something else of a frame when it hears what comes after",
                    found=f"output {name} after {self._steps} steps, {distance:.3g} apart",
                    expected="the same answer, whatever follows",
                    remedy="no state can stand for frames that are not there yet; nothing was "
                    "written",
                )


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference in units of the largest magnitude; infinity where shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    wide, reference = one.astype(np.float64), other.astype(np.float64)
    distance = float(np.max(np.abs(wide - reference), initial=0.0))
    return distance / max(float(np.max(np.abs(reference), initial=0.0)), 1e-12) if distance else 0.0


def _lengths(steps: int, hop: int, *, all_of_them: bool) -> set[int]:
    """After how many steps the file is run over all that it has heard."""
    if all_of_them and steps * (steps + 1) // 2 * hop <= _FRAMES:
        return set(range(1, steps + 1))
    few = {1, 2, 3, 5, steps // 7, steps // 3, steps - 1, steps}
    if all_of_them:
        count = max(1, 2 * _FRAMES // (steps * hop))
        few |= {int(n) for n in np.linspace(1, steps, min(count, steps))}
    return {n for n in few if 1 <= n <= steps}
