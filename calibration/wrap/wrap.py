"""From a frozen backbone and recordings to a policy that remembers, or to a reason why not."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

from stategate.calibration.gates.descent import reproducible
from stategate.calibration.gates.scan import always
from stategate.calibration.recordings import Episodes, names_of, on_disk
from stategate.calibration.settings import WrapRecipe
from stategate.calibration.wrap.backbone import Backbone, BackboneSource, opened
from stategate.calibration.wrap.judging import (
    Tally,
    as_often,
    at_thresholds,
    tallied,
    without_memory,
)
from stategate.calibration.wrap.recordings import (
    classes_of,
    excerpt,
    form_of,
    parted,
    streams_of,
)
from stategate.calibration.wrap.report import WrapReport
from stategate.calibration.wrap.results import WELCOME, Parts, Results, Threshold, chosen
from stategate.calibration.wrap.training import (
    HALF_WAY,
    LEARNED,
    NEARLY_ALL,
    PRICE,
    Labelled,
    Lesson,
    Memoryless,
    chunk_for,
    joined,
    standardise,
)
from stategate.common import console
from stategate.contract import Bundle, CalibrationRecord, Episode
from stategate.contract.errors import CalibrationError
from stategate.models.memories.wrapped import FEATURES, RememberingPolicy

_TRIED = (0.0, -2.0, -4.0, -6.0)
_FEWEST_HARD = (200, 30)  # hard labels in what is trained on, and held out
_ATTEMPTS = 3  # at a memory that does not stand still half-way
_EXCERPT = 2000  # held-out steps of the check of the bundle


class Wrapped(NamedTuple):
    """What `stategate.wrap` gives."""

    bundle: Bundle  # sealed
    report: WrapReport  # what it does on held-out recordings
    policy: RememberingPolicy  # the same step in torch, for `stategate.quantise` and the like


@dataclass(frozen=True, slots=True)
class Trained:
    """A policy whose memory is trained, and what is known of it."""

    policy: RememberingPolicy  # it; the backbone is inside where it is a module and shall be
    backbone: Backbone  # as it was opened
    report: WrapReport  # what it does on held-out recordings
    calibration: CalibrationRecord  # the threshold of its gate
    frames: Episode  # held-out inputs of the backbone
    # held-out inputs of the policy, for the check of its bundle; the frames, or their features
    episode: Episode


def train_memory(
    source: BackboneSource,
    recordings: Episodes,
    *,
    actions: int | None = None,
    label: str = "action",
    allowed_loss: float = 0.005,
    threshold: Threshold = "auto",
    recipe: WrapRecipe | None = None,
    inside: bool = True,
    progress: console.Progress | None = None,
) -> Trained:
    """Train memory and gate behind a backbone; see `stategate.wrap`."""
    if threshold != "auto" and not threshold <= 0.0:
        raise CalibrationError(
            "a threshold above 0 loses in long use what held-out recordings do not show",
            found=threshold,
            expected="0 or less, or auto",
        )
    recipe = recipe or WrapRecipe()
    started = time.perf_counter()
    with on_disk(recordings) as files:
        form = form_of(files, label)
        if files.steps < recipe.least_steps:
            raise CalibrationError(
                "the recordings are too short to train a memory on",
                found=f"{files.steps:,} steps in {len(files)} recordings",
                expected=f"{recipe.least_steps:,} steps at least; {WELCOME:,} are better",
            )
        with opened(source, form.inputs) as backbone:
            with console.progress(files.steps, "reading recordings", listener=progress) as report:
                streams = streams_of(files, form, backbone, report)
            parts = Parts(*parted(streams, recipe.holdout))
            episode = frames = excerpt(files, form, parts.training, _EXCERPT)
            is_inside = backbone.module is not None and inside
            if not is_inside:
                features = backbone.run(frames.inputs)[:, None]
                episode = replace(frames, inputs={FEATURES: features})
    numbers = streams[0].labels.shape[-1] if form.continuous else 0
    if form.continuous and actions not in (None, numbers):
        raise CalibrationError(
            f"{form.key} does not have so many numbers", found=numbers, expected=actions
        )
    count = numbers or classes_of(streams, actions, form.key)
    with reproducible(recipe.seed):
        policy = RememberingPolicy(streams[0].features.shape[1], count)
        results = _Course(policy, parts, recipe, progress).run(allowed_loss, threshold)
    if is_inside:
        assert backbone.module is not None
        policy.behind(backbone.module, backbone.inputs)
    policy.memory.threshold = results.threshold
    judged_on = f"{names_of(recordings)}, held out"
    record = results.calibration(policy, judged_on, parts.steps[1])
    summary = results.report(policy, backbone, parts, time.perf_counter() - started)
    return Trained(policy, backbone, summary, record, frames, episode)


class _Course:
    """One training from the first look at the labels to the held-out table."""

    def __init__(
        self,
        policy: RememberingPolicy,
        parts: Parts,
        recipe: WrapRecipe,
        progress: console.Progress | None,
    ) -> None:
        self._policy, self._parts, self._recipe = policy, parts, recipe
        self._progress = progress

    def run(self, allowed_loss: float, threshold: Threshold) -> Results:
        """Learn to remember, then to skip writes at falling prices, and judge."""
        policy, recipe, parts = self._policy, self._recipe, self._parts
        standardise(policy, parts.training)
        data = joined(parts.training, policy)
        with self._shown(recipe.probe_iterations, "looking for labels that need memory") as report:
            probe = Memoryless(policy, data, recipe, report)
        data = probe.marked(data)
        held_out = [probe.marked(joined([stream], policy)) for stream in parts.held_out]
        memoryless = without_memory(probe, held_out)
        self._check_hard(data, memoryless)

        chunk = recipe.chunk or chunk_for(data.hard_rate)
        lesson = Lesson(policy, data, recipe, min(chunk, len(data.labels)))
        without = float(probe.errors(data).mean())
        warm = 0
        for attempt in range(_ATTEMPTS):
            with self._shown(lesson.patience, "the memory learns") as report:
                warm += lesson.learn_to_remember(NEARLY_ALL * without, report)
            half_way = HALF_WAY * without < lesson.error < LEARNED * without
            if not half_way or attempt == _ATTEMPTS - 1:
                break
            console.note(f"it stands still at an error of {lesson.error:.3f}: it begins again")
            lesson.begin_again()
        if not lesson.error < LEARNED * without:
            raise self._not_learned(lesson, without, data.hard_rate, warm)
        console.note(
            f"{data.hard_rate:.1%} of the labels need memory; it has learned in {warm} iterations: "
            f"error {lesson.error:.3f} at them, {without:.3f} without a memory"
        )
        state = copy.deepcopy(policy.state_dict())
        with self._shown(parts.longest, "judging what it remembers") as report:
            learned = tallied(policy, held_out, {"always": always}, report)["always"]
        tried: list[str] = []
        iterations = warm
        first = recipe.price or PRICE
        for price in (first, first / 3, first / 9):
            policy.load_state_dict(state)
            with self._shown(lesson.planned, f"the gate learns at price {price:.3g}") as report:
                iterations += lesson.learn_to_skip(price / data.hard_rate, report)
            curve, after, never_tally = self._judged(held_out, threshold)
            # Training under a price may cost memory too: that is a loss, and not another reference.
            reference = min(learned, after, key=lambda tally: tally.mean)
            if reference.mean > LEARNED * memoryless.mean:
                raise _learned_by_heart(reference, memoryless)
            best = chosen(curve, reference, allowed_loss, self._parts.longest, threshold)
            gate = curve[max(curve) if best is None else best]
            lost = gate.lost(reference)[0]
            tried.append(
                f"price {price:.3g}: {gate.write_rate:.2%} of steps written, {lost:.4f} lost"
            )
            console.note(tried[-1])
            if best is None:
                continue
            rules = {"gate": gate, "always": reference, "never": never_tally}
            rules |= tallied(policy, held_out, as_often(gate.write_rate, recipe.seed))
            return Results(
                data.hard_rate, memoryless, lesson.chunk, price, iterations, warm, best,
                rules, curve, allowed_loss,
            )  # fmt: skip
        raise CalibrationError(
            "no gate keeps what is needed",
            found="; ".join(tried),
            expected=f"at most {allowed_loss:g} lost against writing always",
            remedy="record more, train for more iterations, or allow a larger loss",
        )

    def _shown(self, total: int, label: str) -> AbstractContextManager[console.Report]:
        return console.progress(total, label, listener=self._progress)

    def _judged(
        self, held_out: Sequence[Labelled], threshold: Threshold
    ) -> tuple[dict[float, Tally], Tally, Tally]:
        values = _TRIED if threshold == "auto" else (threshold,)
        with self._shown(self._parts.longest, "judging held-out recordings") as report:
            tallies = tallied(self._policy, held_out, at_thresholds(values), report)
        curve = dict(zip(values, tallies.values(), strict=False))
        return curve, tallies["always"], tallies["never"]

    def _check_hard(self, data: Labelled, held_out: Tally) -> None:
        hard, held_out_hard = int(data.hard.sum()), int(held_out.judged.sum())
        judged = hard + int(data.easy.sum())
        if hard >= _FEWEST_HARD[0] and held_out_hard >= _FEWEST_HARD[1]:
            return
        raise CalibrationError(
            "hardly a label needs memory: a net without one predicts them",
            found=f"{hard:,} of {judged:,} labels are hard, {held_out_hard:,} of those held out",
            expected="{} hard labels at least, and {} held out".format(*_FEWEST_HARD),
            remedy="ship the policy without a memory; or record where actions depend on what was "
            "seen before",
        )

    def _not_learned(
        self, lesson: Lesson, memoryless: float, hard_rate: float, iterations: int
    ) -> CalibrationError:
        far = 1 / max(hard_rate, 1e-9)
        return CalibrationError(
            "the memory has not learned, so its writes are not priced",
            found=f"error {lesson.error:.3f} at hard labels after {iterations:,} iterations on "
            f"chunks of {lesson.chunk} steps; a hard label every {far:,.0f} steps",
            expected=f"below {LEARNED * memoryless:.3f}, half of the error without a memory",
            remedy="record more; train for more iterations; where little happens for long, record "
            "fewer frames a second, so that what is needed is fewer steps ago",
        )


def _learned_by_heart(always: Tally, memoryless: Tally) -> CalibrationError:
    return CalibrationError(
        "what the memory has learned does not hold in held-out recordings",
        found=f"error {always.mean:.3f} at their hard labels where every step writes",
        expected=f"below {LEARNED * memoryless.mean:.3f}, half of the error without a memory",
        remedy="record more; and let the held-out recordings show what the others show",
    )
