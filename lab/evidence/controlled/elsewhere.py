"""Trainings and measurements on a Dask cluster, whose workers share no folder: files travel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from lab.evidence.controlled.measure import Question, answers_to
from lab.evidence.controlled.rows import Row
from lab.evidence.controlled.train import Training, make
from stategate.calibration.cluster import Cluster, connected, in_order
from stategate.contract.durable import write_whole

Answer = TypeVar("Answer")
Files = dict[str, bytes]  # by suffix: weights and card


class Measurement(NamedTuple):
    """Questions about one checkpoint, bundle by bundle."""

    training: Training
    files: Files
    groups: Sequence[Sequence[Question]]


def on_cluster(
    cluster: Cluster,
    items: Iterable[Training] | Iterable[Measurement],
    work: Callable[..., Answer],
) -> Iterator[tuple[Training, Answer]]:
    """Each training and its answer; what a lost worker did is done again by another.

    Raises:
        CalibrationError: The cluster cannot be reached, or gave up.
    """

    def training_of(item: Training | Measurement) -> Training:
        return item.training if isinstance(item, Measurement) else item

    def doing(item: Training | Measurement) -> str:
        training = training_of(item)
        return f"do {training.config} {training.arm}-{training.seed}"

    todo: list[Training | Measurement] = [*items]
    with connected(cluster) as client:
        for item, answer in in_order(client, todo, work, doing):
            yield training_of(item), answer


def train(training: Training) -> Files:
    """Train on a worker."""
    with tempfile.TemporaryDirectory(prefix="stategate-training-") as folder:
        make(training, Path(folder))
        return packed(training, Path(folder))


def measure(measurement: Measurement) -> list[Row]:
    """Measure on a worker."""
    with tempfile.TemporaryDirectory(prefix="stategate-training-") as name:
        folder = Path(name)
        put(measurement.training, folder, measurement.files)
        answers = (answers_to(group, folder, lambda steps: None) for group in measurement.groups)
        return [row for group in answers for _, row in group]


def packed(training: Training, folder: Path) -> Files:
    """A checkpoint as it travels."""
    path = training.path(folder)
    return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".json", path.suffix)}


def put(training: Training, folder: Path, files: Files) -> None:
    """A checkpoint where it belongs, its card first."""
    for suffix, raw in files.items():
        path = training.path(folder).with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, raw)
