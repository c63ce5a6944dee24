"""``python -m lab train``: remake the checkpoint of a trained zoo model, and its card."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stategate.common.console import progress
from stategate.contract.durable import check_writable
from stategate.models.zoo.catalogue import ZOO

if TYPE_CHECKING:
    from torch import nn

    from lab.training.stream import Recipe, Score
    from stategate.calibration.gates.scan import GateChooser
    from stategate.models.zoo.binding_stream import World

_TEST_SEED = 2_000_003
_TRAINED = [entry.name for entry in ZOO.values() if entry.weights == "trained"]


@click.command("train")
@click.argument("model", type=click.Choice(_TRAINED))
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Of everything drawn; the recipe's if left out.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    help="Optimiser steps, fewer for a trial; the recipe's if left out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Weights and world; the card goes beside it as .json.  "
    "[default: models/checkpoints/MODEL.safetensors]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def train_command(
    model: str, seed: int | None, iterations: int | None, out: Path | None, as_json: bool
) -> None:
    """Train MODEL, and measure it on unseen streams.

    One core: some five minutes for aura-hard, a quarter of an hour for gdn2-hard, one minute for
    gru-few. What aura-hard is compared with is trained by: python -m lab controlled.

    \b
    Example:
      python -m lab train gru-few --seed 0
    """
    out = out or Path("models/checkpoints") / f"{model}.safetensors"
    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} has not the suffix .safetensors", param_hint="--out")
    check_writable(out)

    import torch

    from lab.training.checkpoints import Measured, save
    from lab.training.recipes import TRAININGS
    from lab.training.stream import train
    from stategate.models.zoo.checkpoint import Card

    training = TRAININGS[model]
    seed = training.recipe.seed if seed is None else seed
    iterations = iterations or training.recipe.iterations
    recipe = replace(training.recipe, seed=seed, iterations=iterations)
    world = recipe.world()
    with progress(iterations, f"training {model}") as report:
        module = train(training.learner, recipe, world, report)
    table = [
        Measured(recipe.gate, threshold, steps, streams, one.accuracy, one.write_ratio, seed)
        for steps, streams in training.horizons
        for threshold, one in _scores(
            module, recipe, world, training.thresholds or (None,), steps, streams
        ).items()
    ]
    command = f"python -m lab train {model} --seed {seed} --iterations {iterations}"
    rows = tuple(msgspec.to_builtins(row) for row in table)
    save(out, module, world, Card(command, asdict(recipe), str(torch.__version__), rows))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(table), indent=2))
        return
    for row in table:
        at = "" if row.threshold is None else f" > {row.threshold:g}"
        click.echo(
            f"{row.gate + at:<14} {row.steps:>7,} steps x {row.streams}: "
            f"accuracy {row.accuracy:.4f}, {row.write_ratio:.2f} times fewer writes"
        )
    click.echo(f"written: {out}")


def _scores(
    model: nn.Module,
    recipe: Recipe,
    world: World,
    thresholds: tuple[float | None, ...],
    steps: int,
    streams: int,
) -> dict[float | None, Score]:
    """A trained model at several thresholds, each on the same unseen streams."""
    from lab.training.aura import evaluate, schedule
    from lab.training.step import score
    from stategate.models.memories.aura import AuraMem
    from stategate.models.step import StepModel
    from stategate.models.zoo.binding_stream import CONFIGS, BindingStreams

    def unseen() -> BindingStreams:
        return BindingStreams(CONFIGS[recipe.config], world, streams, _TEST_SEED)

    if isinstance(model, AuraMem):
        gates: dict[float | None, GateChooser] = {
            value: schedule(recipe.gate, recipe.seed, value or 0.0) for value in thresholds
        }
        with progress(steps, f"  {steps:,} steps") as report:
            return evaluate(model, unseen(), streams, steps, gates, report)
    assert isinstance(model, StepModel)
    scores = {}
    for value in thresholds:
        limits = None if value is None else {model.step_spec().gates[0].name: value}
        with progress(steps, f"  {steps:,} steps") as report:
            scores[value] = score(model, unseen(), streams, steps, limits, report)
    return scores
