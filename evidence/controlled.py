"""The controlled benchmark's table, through deployed bundles: ``python -m evidence.controlled``."""

from __future__ import annotations

from pathlib import Path

import click

from evidence.controlled_arms import ARMS, CONFIGS
from evidence.controlled_train import make, trainings

_arms = click.option(
    "--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Only these."
)
_configs = click.option(
    "--config", "configs", multiple=True, type=click.Choice(CONFIGS), help="Only these."
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("build/evidence/controlled"),
    show_default=True,
    help="Folder of the trained checkpoints.",
)


@click.group()
def controlled() -> None:
    """Train and measure what the controlled benchmark compares; a later run goes on."""


@controlled.command("train")
@_arms
@_configs
@_cache
def train_command(arms: tuple[str, ...], configs: tuple[str, ...], cache: Path) -> None:
    """Train what is not trained yet, one minute and a half each on one core."""
    for training in trainings(arms or ARMS, configs or CONFIGS):
        make(training, cache)


if __name__ == "__main__":
    controlled()
