"""Which projections bear fewer bits: each by itself in closed loop, then together.

A projection's error is judged by what it does to the outputs and gates of the whole memory over
many steps, not by how far its own result is off. Trials are kept on disk by the digest of all that
decides their outcome, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import onnx

from stategate.common import console
from stategate.contract import Episode, sha256
from stategate.contract.durable import write_whole
from stategate.contract.errors import CalibrationError, ParityError
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.receipts import InputsRef
from stategate.contract.staging import scratch_folder
from stategate.export.candidate import Candidate, Reference
from stategate.export.candidates import candidate_from, episode_for, reference_for
from stategate.export.inputs import Range
from stategate.export.passes.projections import Projection, chosen, projections
from stategate.export.passes.state_precision import stored
from stategate.export.precision import lowered
from stategate.export.seal.answers import Answers
from stategate.export.seal.pack import draft
from stategate.export.seal.verify import STEPS, Limits, compare
from stategate.models.load import evaluating

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Trial:
    """What some groups in fewer bits did to the memory."""

    groups: tuple[str, ...]  # which groups
    output_error: float  # largest error of an output, see `Gaps`; infinity where the step failed
    flip_rate: float  # share of gate decisions that differed
    elements: int  # weights that were made smaller

    def within(self, limits: Limits) -> bool:
        """Whether it keeps the limits."""
        return self.output_error <= limits.error and self.flip_rate <= (limits.flip_rate or 0.0)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan, and how it was found."""

    plan: PrecisionPlan  # the plan
    alone: tuple[Trial, ...]  # A trial of each group by itself, the most sensitive last
    together: tuple[Trial, ...]  # trials of what was left, in order; the last is the plan's


def propose(
    model: object,
    cache: str | Path,
    *,
    precision: str | Path | PrecisionPlan = "int8-weights",
    ranges: RangeRecord | str | Path | None = None,
    episode: str | Path | Episode | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    steps: int = STEPS,
    max_output_error: float = 0.05,
    max_flip_rate: float = 0.001,
    progress: console.Progress | None = None,
) -> Proposal:
    """A precision plan that keeps two limits, found by stepping one group of weights at a time.

    Args:
        model: See `stategate.make`, like all that is not said here.
        cache: Folder of trials; a search that was stopped goes on from there.
        precision: What is tried; what it keeps in float stays so.
        ranges: Of activations, where ``precision`` quantises those.
        episode: Inputs of each trial.
        input_ranges: Where random numbers are drawn.
        steps: Of each trial.
        max_output_error: Largest error of an output, relative to its size.
        max_flip_rate: Largest share of gate decisions that may differ.
        progress: Called with stage, trials done, and the most that there can be.

    Raises:
        CalibrationError: No group keeps the limits, or the ranges are for another model.
        SpecError: The plan names something that the model lacks.
        ExportError: The plan quantises nothing.
    """
    plan = precision if isinstance(precision, PrecisionPlan) else PrecisionPlan.named(precision)
    with evaluating(model) as loaded:
        candidate = candidate_from(loaded)
        if ranges is not None and not isinstance(ranges, RangeRecord):
            ranges = RangeRecord.load(ranges)
        known = None if ranges is None else ranges.limits(candidate.model.sha256, plan.method)
        inputs, source = episode_for(loaded, candidate, episode, steps, input_ranges)
        reference = reference_for(loaded.model, candidate)
        search = Search(candidate, reference, inputs, plan, known, Path(cache), source)
        # At most so many: each group alone, then all of them, and one less each time.
        total = 2 * len(search.groups)
        done = count(1)
        kept = f"trials are kept in {cache}; the same command goes on from there"
        with console.progress(total, "trying", kept, progress) as report:
            limits = Limits(max_output_error, max_flip_rate)
            return search.propose(limits, lambda trial: report(next(done)))


class Recorded:
    """A model's outputs and gates over an episode, computed once and told again."""

    def __init__(self, reference: Reference, episode: Episode, inputs: InputsRef) -> None:
        self.name = reference.name
        self._steps: list[tuple[Arrays, Arrays]] = []
        answers = Answers(reference, episode, inputs)
        for t, given in enumerate(episode):
            outputs, _, gates = answers.step(t, given)
            self._steps.append((_copied(outputs), _copied(gates)))
        answers.check()
        self._at = 0

    def rewound(self) -> Recorded:
        """The same, at its first step."""
        self._at = 0
        return self

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs and gates of the next step; no states."""
        outputs, gates = self._steps[self._at]
        self._at += 1
        return outputs, {}, gates


class Search:
    """Trials of one model on one episode."""

    def __init__(
        self,
        candidate: Candidate,
        reference: Reference,
        episode: Episode,
        plan: PrecisionPlan,
        ranges: Mapping[str, float] | None,
        cache: Path,
        inputs: InputsRef = InputsRef(),  # noqa: B008  (frozen)
    ) -> None:
        self._candidate = candidate
        self._plan = plan
        self._ranges = ranges
        self._cache = cache
        self._episode = episode
        self._every = projections(onnx.load_model_from_string(candidate.graph), candidate.spec)
        self.groups = _by_group(chosen(plan, self._every))
        self._reference = Recorded(reference, episode, inputs)
        self._question = sha256(_decisive(candidate) + episode.to_bytes())

    def propose(self, limits: Limits, report: Callable[[Trial], None] = lambda _: None) -> Proposal:
        """The plan that quantises most while it keeps the limits, by greedy search.

        Groups that break the limits alone stay in float; of the others the most sensitive is put
        back until all that is left keeps the limits together.
        """
        alone = []
        for group in self.groups:
            alone.append(self.trial((group,)))
            report(alone[-1])
        alone.sort(key=lambda trial: (trial.output_error, trial.flip_rate))
        left = [trial.groups[0] for trial in alone if trial.within(limits)]
        together: list[Trial] = []
        while left:
            together.append(self.trial(tuple(left)))
            report(together[-1])
            if together[-1].within(limits):
                return Proposal(self._without(left), tuple(alone), tuple(together))
            left.pop()
        raise CalibrationError(
            "no group of the model bears fewer bits within these limits",
            found=f"{alone[0].groups[0]}, the least sensitive of {len(alone)}, has output error "
            f"{alone[0].output_error:.3g} and flips {alone[0].flip_rate:.3%} of decisions",
            expected=f"at most {limits.error:g} and {limits.flip_rate or 0.0:.3%}",
            remedy="raise --max-output-error or --max-flip-rate, or choose another --precision",
        )

    def trial(self, groups: tuple[str, ...]) -> Trial:
        """Step the model with these groups in fewer bits, or remember having done so."""
        elements = sum(self.groups[group] for group in groups)
        candidate = lowered(self._candidate, self._without(groups), self._ranges)
        if self._plan.narrow_states:
            storage, feedback = self._plan.narrow_states, self._plan.error_feedback
            candidate = stored(candidate, storage, feedback)
        digest = sha256(f"{self._question} {sha256(candidate.graph)}".encode())
        kept = self._cache / f"{digest}.json"
        with suppress(OSError, ValueError):  # not there, or damaged: made anew
            error, flip_rate = map(float, json.loads(kept.read_bytes()))
            return Trial(groups, error, flip_rate, elements)
        with scratch_folder() as scratch:
            bundle = draft(Path(scratch) / "trial", candidate)
            try:
                seen = compare(bundle.path, self._reference.rewound(), self._episode)
                error, flip_rate = float(np.max(seen.output_error, initial=0.0)), seen.flip_rate
            except ParityError:  # it gave NaN: as bad as an error can be
                error, flip_rate = float("inf"), 1.0
        write_whole(kept, json.dumps([str(error), flip_rate]).encode())
        return Trial(groups, error, flip_rate, elements)

    def _without(self, groups: Sequence[str]) -> PrecisionPlan:
        """The plan with all other groups kept in float."""
        others = [name for name in self.groups if name not in groups]
        keep = (*self._plan.keep_float, *others)
        return msgspec.structs.replace(self._plan, keep_float=keep)


def _by_group(nodes: list[Projection]) -> dict[str, int]:
    """Elements of each group, in the graph's order."""
    return {p.group: p.elements for p in nodes}


def _decisive(candidate: Candidate) -> bytes:
    """Everything of a float candidate that decides what its step answers."""
    thresholds = json.dumps(candidate.spec.thresholds, sort_keys=True).encode()
    initial = b"".join(candidate.initial[name].tobytes() for name in sorted(candidate.initial))
    return candidate.graph + thresholds + initial


def _copied(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}
