"""What a gate leaves out, value by value: the reason where gating hurts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lab.evidence.controlled.arms import ARMS, DEPLOYED
from lab.evidence.controlled.gates import ALWAYS
from lab.evidence.controlled.measure import deploy, roll
from lab.evidence.controlled.streams import TEST_SEED, held_out
from lab.evidence.controlled.train import Training, trained
from lab.evidence.records import digest_of
from stategate.contract.specs import Record
from stategate.models.zoo.binding_stream import VALUES
from stategate.runtime.session import Session

HORIZON = (16_384, 4)


class ByValue(Record, frozen=True):
    """One deployed model on the held-out streams of its configuration.

    Attributes:
        arm: ``learned`` or ``tutored`` at the deployed threshold, or ``always``.
        config: Of training and streams.
        seed: Of the training.
        digest: Of the question.
        events: By value: how often an entity took it.
        written: Of them, how often the ledger counted a write.
        asked: By value: how often it was the right answer.
        right: Of them, how often it was given.
    """

    arm: str
    config: str
    seed: int
    digest: str
    events: tuple[int, ...]
    written: tuple[int, ...]
    asked: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def blind(self) -> tuple[int, ...]:
        """Values of whose events fewer than half are written."""
        both = zip(self.written, self.events, strict=True)
        return tuple(value for value, (w, e) in enumerate(both) if 2 * w < e)

    @property
    def accuracy(self) -> float:
        """Share of all queries that are answered rightly."""
        return sum(self.right) / sum(self.asked)


def questions() -> Iterator[tuple[Training, float, str]]:
    """What is asked: every training of the configuration that is hardest to gate.

    Whether a gate goes blind, and with what it does not, is asked of as many trainings each.
    """
    for arm, threshold in (("learned", DEPLOYED), ("tutored", DEPLOYED), ("always", ALWAYS)):
        for seed in range(ARMS[arm].seeds["xhard"]):
            training = Training(arm, "xhard", seed)
            question = digest_of(
                "by value", training, training.recipe, threshold, HORIZON, TEST_SEED
            )
            yield training, threshold, question


def by_value(
    training: Training, threshold: float, digest: str, cache: Path, report: Callable[[int], None]
) -> ByValue:
    """Step a bundle and sort its writes and answers by value.

    Raises:
        SpecError: It was not trained.
        ExportError: The exporter refuses it.
    """
    module, _ = trained(training, cache)
    steps, streams = HORIZON
    unseen = held_out(training.config, steps, streams)
    wrote, right = np.zeros((2, streams, steps), dtype=bool)
    with tempfile.TemporaryDirectory(prefix="stategate-evidence-") as scratch:
        bundle = deploy(module, training, threshold, Path(scratch) / "bundle")
        with Session.open(bundle) as session:
            (output,) = session.outputs.values()
            past = 0

            def look(i: int, t: int) -> None:
                nonlocal past
                writes = session.ledger.writes
                wrote[i, t], past = writes > past, writes
                right[i, t] = output.argmax() == unseen.label[i, t]
                if t + 1 == steps:
                    report((i + 1) * steps)

            roll(session, unseen, training.arm, look)

    def count(where: np.ndarray) -> tuple[int, ...]:
        return tuple(np.bincount(unseen.value[where], minlength=VALUES).tolist())

    is_query = unseen.label >= 0
    return ByValue(
        training.arm,
        training.config,
        training.seed,
        digest,
        count(unseen.event),
        count(unseen.event & wrote),
        count(is_query),
        count(is_query & right),
    )
