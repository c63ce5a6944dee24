"""``stategate train-aura``: remake the AURA-Mem checkpoint and the table beside it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec
import torch

from stategate.contract.console import check_writable, progress
from stategate.models import checkpoint
from stategate.models.aura import AuraMem, GateChooser
from stategate.models.aura_train import GateRule, Recipe, evaluate, schedule, train
from stategate.models.binding_stream import CONFIGS, BindingStreams, World
from stategate.models.checkpoint import Card, Measured

RULES: tuple[GateRule, ...] = ("learned", "always", "random", "periodic")
THRESHOLDS = (-2.0, 0.0)
HORIZONS = ((4096, 8), (100_000, 4))  # steps, streams
_TEST_SEED = 2_000_003


@click.command("train-aura")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything drawn."
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=Recipe().iterations,
    show_default=True,
    help="Optimiser steps; fewer for a trial.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("models/checkpoints/aura-hard.safetensors"),
    show_default=True,
    help="Weights and world; the card goes beside it as .json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def train_aura(seed: int, iterations: int, out: Path, as_json: bool) -> None:
    """Train AURA-Mem and what it is compared with, and measure all of them.

    One core, about a minute and a half for each of the four gate rules.

    \b
    Example:
      stategate train-aura --seed 0
    """
    check_writable(out)
    table: list[Measured] = []
    kept: tuple[AuraMem, World, Recipe] | None = None
    for rule in RULES:
        recipe = Recipe(gate=rule, seed=seed, iterations=iterations)
        world = recipe.world()
        label = f"training {rule:<9}"
        with progress(iterations, label) as report:
            model = train(recipe, world, report)
        if rule == "learned":
            kept = (model, world, recipe)
        for steps, streams in HORIZONS:
            source = BindingStreams(CONFIGS[recipe.config], world, streams, _TEST_SEED)
            gates: dict[float | None, GateChooser]
            if rule == "learned":
                gates = {value: schedule(rule, seed, value) for value in THRESHOLDS}
            else:
                gates = {None: schedule(rule, seed)}
            with progress(steps, f"  {steps:,} steps") as report:
                scores = evaluate(model, source, streams, steps, gates, report)
            table += [
                Measured(rule, threshold, steps, streams, score.accuracy, score.write_ratio, seed)
                for threshold, score in scores.items()
            ]
    assert kept is not None
    model, world, recipe = kept
    command = f"stategate train-aura --seed {seed} --iterations {iterations}"
    card = Card(command, recipe, str(torch.__version__), tuple(table))
    checkpoint.save(out, model, world, card)
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
