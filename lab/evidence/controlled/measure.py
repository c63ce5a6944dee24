"""From a checkpoint to its rows: export, step the bundle on held-out streams, read the ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

import stategate
from lab.evidence.controlled.arms import ARMS, CALIBRATED, TOLERANCE
from lab.evidence.controlled.cache import GrowingCache, answers
from lab.evidence.controlled.rows import At, Row
from lab.evidence.controlled.streams import (
    HORIZONS,
    INTERFERENCE,
    SESSIONS,
    SHIFTED,
    SHIFTED_HORIZONS,
    STREAMS,
    TEST_SEED,
    VALIDATION,
    VALIDATION_SEED,
    HeldOut,
    held_out,
    schedule,
    steps_of_lesson,
)
from lab.evidence.controlled.thresholds import budget_threshold, calibrated_threshold
from lab.evidence.controlled.train import Training, trained
from lab.evidence.records import digest_of
from stategate.contract import Episode
from stategate.contract.specs import Record
from stategate.models.load import LoadedModel
from stategate.models.memories.aura import AuraMem
from stategate.models.weights import weights_sha256
from stategate.runtime.session import Session

_LESSONS = 64  # of each number of sessions between
_CHECKED_STEPS = 1000  # of the parity check before a bundle is sealed


class Question(Record, frozen=True):
    """A row to be measured.

    Attributes:
        training: What is deployed.
        threshold: With which threshold; ``budget`` and ``calibrated`` are found first.
        stream: Through what it is stepped.
        horizons: How far.
    """

    training: Training
    threshold: float | str | None
    stream: str
    horizons: tuple[tuple[int, int], ...]

    @property
    def digest(self) -> str:
        """Changes with anything that the answer depends on, but for library versions."""
        question = (self.training, self.training.recipe, self.threshold)
        streams = (STREAMS[self.stream], self.horizons, TEST_SEED)
        selection = (VALIDATION, VALIDATION_SEED) if isinstance(self.threshold, str) else ()
        within = (TOLERANCE,) if self.threshold == CALIBRATED else ()
        return digest_of(*question, *streams, *selection, *within)


def questions(training: Training) -> list[tuple[Question, ...]]:
    """What is asked about one checkpoint, bundle by bundle."""
    arm = ARMS[training.arm]
    own = tuple(h for h in HORIZONS if h[0] <= arm.longest)
    ways = [(training.config, own)]
    if arm.shifted and training.config == "hard":
        ways += [(stream, SHIFTED_HORIZONS) for stream in SHIFTED]
    groups = [
        tuple(Question(training, threshold, stream, horizons) for stream, horizons in ways)
        for threshold in arm.thresholds
    ]
    if arm.interfered and training.config == "hard":
        horizons = tuple((steps_of_lesson(k), _LESSONS) for k in SESSIONS)
        groups[0] += (Question(training, arm.thresholds[0], INTERFERENCE, horizons),)
    return groups


def weights_of(module: nn.Module) -> str:
    """Which weights a row is of."""
    return weights_sha256(module)[:16]


def answers_to(
    group: Sequence[Question], cache: Path, report: Callable[[int], None]
) -> Iterator[tuple[Question, Row]]:
    """Measure the rows of one bundle.

    Args:
        group: Questions about one checkpoint at one threshold, at least one.
        cache: Folder of the checkpoints.
        report: Called with the number of steps done.

    Raises:
        SpecError: It was not trained.
        ExportError: The exporter refuses it.
    """
    training, threshold = group[0].training, group[0].threshold
    module, _ = trained(training, cache)
    weights = weights_of(module)
    calibrated = threshold == CALIBRATED
    if isinstance(threshold, str):
        assert isinstance(module, AuraMem)
        find = calibrated_threshold if calibrated else budget_threshold
        threshold = find(module, training)
    step: Callable[[HeldOut], At]
    state_bytes: int | None
    with ExitStack() as stack:
        if isinstance(module, GrowingCache):
            step, state_bytes, engine = partial(grown, module), None, f"torch {torch.__version__}"
        else:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="stategate-evidence-"))
            bundle = deploy(module, training, threshold, Path(scratch) / "bundle")
            session = stack.enter_context(Session.open(bundle))
            step = partial(roll, session, rule=training.arm)
            state_bytes, engine = session.manifest.state_bytes, session.engine_name
        done = 0
        for question in group:
            at = []
            for steps, streams in question.horizons:
                at.append(step(held_out(question.stream, steps, streams)))
                done += steps * streams
                report(done)
            yield (
                question,
                Row(
                    arm=training.arm,
                    config=training.config,
                    seed=training.seed,
                    stream=question.stream,
                    threshold=threshold,
                    iterations=training.recipe.iterations,
                    state_bytes=state_bytes,
                    kv_bytes_per_step=cast(int, module.kv_bytes_per_step),
                    engine=engine,
                    digest=question.digest,
                    at=tuple(at),
                    calibrated=calibrated,
                    weights=weights,
                ),
            )


def deploy(module: nn.Module, training: Training, threshold: float | None, out: Path) -> Path:
    """Export a trained module as ``stategate export --engines onnxruntime,native`` does.

    Raises:
        ExportError: It cannot be traced, or its bundle does not do what the module does.
    """
    if threshold is not None:
        module.threshold = threshold  # type: ignore[assignment]
    name = f"{training.config}-{training.arm}-{training.seed}"
    family = str(module.family)
    loaded = LoadedModel(name, family, "evidence", module, module, None)  # type: ignore[arg-type]
    unseen = held_out(training.config, _CHECKED_STEPS, 1, VALIDATION_SEED)
    observed, *others = loaded.model.step_spec().inputs
    inputs = {observed.name: unseen.z[0]}
    if others:
        inputs["write"] = schedule(training.arm, unseen, 0)
    stategate.make(
        loaded,
        out,
        episode=Episode(inputs),
        steps=_CHECKED_STEPS,
        engines="onnxruntime,native",
        split="fused",
        progress=lambda *_: None,
    )
    return out


def _nothing(stream: int, step: int) -> None:
    """Look at nothing."""


def roll(
    session: Session, unseen: HeldOut, rule: str, look: Callable[[int, int], None] = _nothing
) -> At:
    """Step a session through streams, each from an empty memory.

    Args:
        session: Open; its counters go on.
        unseen: The streams.
        rule: Of the schedule, where the bundle takes one.
        look: Called after each step with the stream and the step.
    """
    names = [tensor.name for tensor in session.manifest.inputs]
    (output,) = session.outputs.values()
    before = session.ledger.writes
    right = 0
    for i, (z, labels) in enumerate(zip(unseen.z, unseen.label.tolist(), strict=True)):
        session.reset()
        columns = [z, schedule(rule, unseen, i)] if len(names) > 1 else [z]
        for t, (label, *now) in enumerate(zip(labels, *columns, strict=True)):
            session.step(**dict(zip(names, now, strict=True)))
            if label >= 0:
                right += int(output.argmax()) == label
            look(i, t)
    judged = int((unseen.label >= 0).sum())
    writes = session.ledger.writes - before
    return At(unseen.label.shape[1], unseen.label.shape[0], judged, right, writes)


def grown(model: GrowingCache, unseen: HeldOut) -> At:
    """Answer with the cache; each of its steps writes."""
    right = judged = 0
    for z, label in zip(unseen.z, unseen.label, strict=True):
        queries = np.flatnonzero(label >= 0)
        chosen = answers(model, torch.from_numpy(z[:, 0]), torch.from_numpy(queries))
        right += int((chosen.numpy() == label[queries]).sum())
        judged += len(queries)
    streams, steps = unseen.label.shape
    return At(steps, streams, judged, right, streams * steps)
