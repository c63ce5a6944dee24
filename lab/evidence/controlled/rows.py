"""What the controlled benchmark keeps of each deployed model, and which rows make one line."""

from __future__ import annotations

from collections.abc import Iterable

from lab.evidence.controlled.arms import ARMS, CALIBRATED, DEPLOYED, Threshold
from lab.evidence.controlled.streams import STREAMS
from stategate.contract.specs import Record


class At(Record, frozen=True):
    """What one horizon gave, all its streams together.

    Attributes:
        steps: Of each stream, from an empty memory.
        streams: How many.
        judged: Queries.
        right: Of them, answered rightly.
        writes: Steps in which the memory was written, by the runtime's ledger.
    """

    steps: int
    streams: int
    judged: int
    right: int
    writes: int

    @property
    def accuracy(self) -> float:
        """Share of queries answered rightly."""
        return self.right / self.judged

    @property
    def ratio(self) -> float:
        """Steps per write."""
        return self.steps * self.streams / self.writes if self.writes else float("inf")


class Row(Record, frozen=True):
    """One deployed model on one kind of stream.

    Attributes:
        arm: Name in `ARMS`.
        config: That it was trained on.
        seed: Of the training.
        stream: That it was stepped through; the configuration's own, or one that it never saw.
        threshold: In the bundle; None where there is no gate.
        iterations: Of the training.
        state_bytes: By the manifest; None of a memory that grows.
        kv_bytes_per_step: Of a key-value cache of the same width.
        engine: That stepped it.
        digest: Of the question that the row answers; another one is measured anew.
        at: By horizon.
        calibrated: Whether its threshold was found by ``stategate calibrate``'s rule.
        weights: Start of their digest; empty in rows that are older than this field.
    """

    arm: str
    config: str
    seed: int
    stream: str
    threshold: float | None
    iterations: int
    state_bytes: int | None
    kv_bytes_per_step: int
    engine: str
    digest: str
    at: tuple[At, ...]
    calibrated: bool = False
    weights: str = ""

    def up_to(self, steps: int) -> At | None:
        """What that horizon gave, if it was stepped so far."""
        return next((at for at in self.at if at.steps == steps), None)


def order(row: Row) -> tuple[int, int, int, int, bool, float]:
    """Where a row stands in the file."""
    streams, arms = list(STREAMS), list(ARMS)
    place = (streams.index(row.config), arms.index(row.arm), streams.index(row.stream), row.seed)
    return (*place, row.calibrated, row.threshold or 0.0)


def shown(rows: Iterable[Row], arms: Iterable[str], stream: str = "hard") -> Lines:
    """Lines of one configuration's trainings; of several thresholds, at the deployed one."""
    config = stream.split(",")[0]
    return [
        (name.removesuffix(f", {name_of(DEPLOYED)}"), of)
        for name, of in lines_of(rows, config, stream, arms)
        if len(ARMS[of[0].arm].thresholds) == 1 or is_at(of[0], DEPLOYED)
    ]


def of_several_weights(rows: Iterable[Row]) -> list[tuple[str, str, int]]:
    """Arm, configuration and seed of trainings whose rows are not all of the same weights."""
    weights: dict[tuple[str, str, int], set[str]] = {}
    for row in rows:
        weights.setdefault((row.arm, row.config, row.seed), set()).add(row.weights)
    return [training for training, digests in weights.items() if len(digests) > 1]


def is_at(row: Row, threshold: Threshold) -> bool:
    """Whether the row is of that threshold."""
    return (
        row.calibrated
        if threshold == CALIBRATED
        else row.threshold == threshold and not row.calibrated
    )


def name_of(threshold: Threshold) -> str:
    """What the page calls a threshold."""
    return threshold if isinstance(threshold, str) else f"opens above {threshold:g}"


Lines = list[tuple[str, list[Row]]]


def lines_of(rows: Iterable[Row], config: str, stream: str, arms: Iterable[str]) -> Lines:
    """Trainings that belong into one line, with what it is called."""
    rows = [row for row in rows if (row.config, row.stream) == (config, stream)]
    lines = []
    for arm in arms:
        several = len(ARMS[arm].thresholds) > 1
        for threshold in ARMS[arm].thresholds:
            of = [r for r in rows if r.arm == arm and (not several or is_at(r, threshold))]
            name = ARMS[arm].says + (f", {name_of(threshold)}" if several else "")
            if of:
                lines.append((name, of))
    return lines
