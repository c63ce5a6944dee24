"""The controlled benchmark's table, through deployed bundles: ``python -m lab controlled``."""

from __future__ import annotations

from pathlib import Path

import click

from lab.evidence.controlled.arms import ARMS, CONFIGS, MOST_SEEDS
from lab.evidence.controlled.measure import answers_to, questions, weights_of
from lab.evidence.controlled.rows import Row, order
from lab.evidence.controlled.train import make, trained, trainings
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


@click.group(cls=CommandGroup)
def controlled() -> None:
    """Train and measure what the controlled benchmark compares; a later run goes on."""


@controlled.command("train")
@_arms
@_configs
@_seeds
@_cache
def train_command(arms: tuple[str, ...], configs: tuple[str, ...], seeds: int, cache: Path) -> None:
    """Train what is not trained yet, one minute and a half each on one core."""
    for training in trainings(arms or ARMS, configs or CONFIGS, seeds):
        make(training, cache)


@controlled.command("measure")
@_arms
@_configs
@_seeds
@_cache
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/evidence/controlled.json"),
    show_default=True,
    help="Results; rows that are there already are kept, unless the weights are others now.",
)
def measure_command(
    arms: tuple[str, ...], configs: tuple[str, ...], seeds: int, cache: Path, out: Path
) -> None:
    """Export what is trained, step it through held-out streams, and keep each row when done."""
    check_writable(out)
    rows = {row.digest: row for row in read_rows(out, Row)}
    digests = {q.digest for t in trainings(ARMS, CONFIGS) for group in questions(t) for q in group}
    rows = {digest: row for digest, row in rows.items() if digest in digests}
    for training in trainings(arms or ARMS, configs or CONFIGS, seeds):
        label = f"{training.config} {training.arm}-{training.seed}"
        is_trained = training.done(cache)
        weights = weights_of(trained(training, cache)[0]) if is_trained else None

        def is_other(row: Row, weights: str | None = weights) -> bool:
            return weights is not None and row.weights != weights

        groups = [
            [q for q in group if q.digest not in rows or is_other(rows[q.digest])]
            for group in questions(training)
        ]
        if any(groups) and not is_trained:
            click.echo(f"{label} is not trained yet: python -m lab controlled train", err=True)
            continue
        for group in filter(None, groups):
            steps = sum(length * count for q in group for length, count in q.horizons)
            with progress(steps, f"stepping {label:<24}") as report:
                for question, row in answers_to(group, cache, report):
                    rows[question.digest] = row
                    write_rows(out, rows.values(), order)


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
        label = f"{training.config} {training.arm}-{training.seed}"
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
