"""The controlled benchmark's table, through deployed bundles: ``python -m lab controlled``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click

from lab.evidence.controlled import elsewhere
from lab.evidence.controlled.arms import ARMS, CONFIGS, MOST_SEEDS
from lab.evidence.controlled.measure import Question, answers_to, questions, weights_of
from lab.evidence.controlled.rows import Row, order
from lab.evidence.controlled.train import Training, make, trained, trainings
from lab.evidence.controlled.values import HORIZON, ByValue, by_value
from lab.evidence.controlled.values import questions as value_questions
from lab.evidence.records import read_rows, write_rows
from stategate.common.console import progress
from stategate.common.ending import CommandGroup
from stategate.contract.durable import check_writable

_arms = click.option(
    "--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Only these."
)
_configs = click.option(
    "--config", "configs", multiple=True, type=click.Choice(CONFIGS), help="Only these."
)
_seeds = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=MOST_SEEDS,
    help="At most so many trainings of each.",
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("build/evidence/controlled"),
    show_default=True,
    help="Folder of the trained checkpoints.",
)


_cluster = click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Do it on a Dask cluster: local for the cores of this machine, or a scheduler's address.",
)


@click.group(cls=CommandGroup)
def controlled() -> None:
    """Train and measure what the controlled benchmark compares; a later run goes on."""


@controlled.command("train")
@_arms
@_configs
@_seeds
@_cache
@_cluster
def train_command(
    arms: tuple[str, ...], configs: tuple[str, ...], seeds: int, cache: Path, cluster: str | None
) -> None:
    """Train what is not trained yet, a few minutes each on one core."""
    chosen = trainings(arms or ARMS, configs or CONFIGS, seeds)
    missing = (training for training in chosen if not training.done(cache))
    if cluster is None:
        for training in missing:
            make(training, cache)
        return
    for training, files in elsewhere.on_cluster(cluster, missing, elsewhere.train):
        elsewhere.put(training, cache, files)


@controlled.command("measure")
@_arms
@_configs
@_seeds
@_cache
@_cluster
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/evidence/controlled.json"),
    show_default=True,
    help="Results; rows that are there already are kept, unless the weights are others now.",
)
def measure_command(
    arms: tuple[str, ...],
    configs: tuple[str, ...],
    seeds: int,
    cache: Path,
    cluster: str | None,
    out: Path,
) -> None:
    """Export what is trained, step it through held-out streams, and keep each row when done."""
    check_writable(out)
    rows = {row.digest: row for row in read_rows(out, Row)}
    digests = {q.digest for t in trainings(ARMS, CONFIGS) for group in questions(t) for q in group}
    rows = {digest: row for digest, row in rows.items() if digest in digests}
    chosen = _unanswered(trainings(arms or ARMS, configs or CONFIGS, seeds), rows, cache)
    if cluster is not None:
        sent = (
            elsewhere.Measurement(training, elsewhere.packed(training, cache), groups)
            for training, groups in chosen
        )
        for _, measured in elsewhere.on_cluster(cluster, sent, elsewhere.measure):
            rows |= {row.digest: row for row in measured}
            write_rows(out, rows.values(), order)
        return
    for training, groups in chosen:
        for group in groups:
            steps = sum(length * count for q in group for length, count in q.horizons)
            with progress(steps, f"stepping {_label(training):<24}") as report:
                for question, row in answers_to(group, cache, report):
                    rows[question.digest] = row
                    write_rows(out, rows.values(), order)


def _label(training: Training) -> str:
    return f"{training.config} {training.arm}-{training.seed}"


def _unanswered(
    chosen: Iterable[Training], rows: Mapping[str, Row], cache: Path
) -> Iterator[tuple[Training, list[list[Question]]]]:
    """Questions without a row, or with one of other weights, bundle by bundle."""
    for training in chosen:
        is_trained = training.done(cache)
        weights = weights_of(trained(training, cache)[0]) if is_trained else None
        groups = [
            [q for q in group if (row := rows.get(q.digest)) is None or row.weights != weights]
            if is_trained
            else [q for q in group if q.digest not in rows]
            for group in questions(training)
        ]
        groups = [group for group in groups if group]
        if groups and not is_trained:
            click.echo(
                f"{_label(training)} is not trained yet: python -m lab controlled train", err=True
            )
        elif groups:
            yield training, groups


@controlled.command("values")
@_cache
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/evidence/values.json"),
    show_default=True,
    help="Results; rows that are there already are kept.",
)
def values_command(cache: Path, out: Path) -> None:
    """Sort writes and answers by value, where gating costs most."""
    check_writable(out)
    rows = {row.digest: row for row in read_rows(out, ByValue)}
    for training, threshold, digest in value_questions():
        label = _label(training)
        if digest in rows:
            continue
        if not training.done(cache):
            click.echo(f"{label} is not trained yet: python -m lab controlled train", err=True)
            continue
        with progress(HORIZON[0] * HORIZON[1], f"stepping {label:<24}") as report:
            rows[digest] = by_value(training, threshold, digest, cache, report)
        write_rows(out, rows.values(), lambda row: (row.config, row.arm, row.seed))


if __name__ == "__main__":
    controlled()
