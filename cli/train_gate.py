"""``stategate train-gate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from stategate.calibration.settings import GateRecipe
from stategate.cli.episode_options import episodes_for, episodes_option, zoo_options
from stategate.common.console import progress
from stategate.contract.durable import check_writable
from stategate.contract.errors import ResultError
from stategate.models.source import model_argument


@click.command("train-gate")
@model_argument
@episodes_option("Inputs, the last file held out")
@zoo_options(2)
@click.option(
    "--write-price",
    type=click.FloatRange(min=0),
    default=GateRecipe().write_price,
    show_default=True,
    help="Price of writing in every step, in units of the error that training lowers.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=GateRecipe().iterations,
    show_default=True,
    help="Optimiser steps.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything drawn."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The gate (.safetensors).",
)
@click.option("--json", "as_json", is_flag=True, help="Print what it is worth as JSON.")
def train_gate_command(
    model: str,
    episode_paths: tuple[Path, ...],
    steps: int,
    count: int,
    write_price: float,
    iterations: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train a gate over the whole memory of MODEL, which stays as it is.

    \b
    Example:
      stategate train-gate my.py:policy --episode logs/ --out build/gate.safetensors
    """
    if out.suffix != ".safetensors":
        raise ResultError("a gate has the suffix .safetensors", found=out)
    check_writable(out)

    import torch

    from stategate.calibration.gates.training import at_random, judge, train_gate
    from stategate.models.gates.learned import LearnedGate
    from stategate.models.load import load_model

    loaded = load_model(model)
    found, _, _ = episodes_for(loaded, episode_paths, steps, count)
    *training, held_out = found
    if not training:
        raise click.UsageError("two episodes at least: the last one is held out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = LearnedGate(loaded.model)
    recipe = GateRecipe(write_price=write_price, seed=seed, iterations=iterations)
    with progress(iterations, "training the gate") as report:
        train_gate(gate, training, recipe, report)
    trained = judge(gate, [held_out], lambda logit: logit > gate.threshold)
    chance = judge(gate, [held_out], at_random(trained.write_rate, seed))
    gate.save_gate(out)
    rows = {"trained": asdict(trained), "random": asdict(chance)}
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, judged in (("trained", trained), ("random", chance)):
        click.echo(
            f"{name} gate: writes {judged.write_rate:.2%} of steps, "
            f"output error {judged.output_error:.3g} against writing always"
        )
    click.echo(f"written: {out}")
