"""``stategate train-retention``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stategate.calibration.settings import RetentionRecipe
from stategate.cli.episode_options import episodes_for, episodes_option, zoo_options
from stategate.common.console import progress
from stategate.contract.durable import check_writable
from stategate.contract.errors import CalibrationError, ResultError
from stategate.models.source import model_argument

_DEFAULT = RetentionRecipe()


@click.command("train-retention")
@model_argument
@episodes_option("Inputs, the last file held out")
@zoo_options(2)
@click.option(
    "--capacity-price",
    type=click.FloatRange(min=0),
    default=_DEFAULT.capacity_price,
    show_default=True,
    help="Price of retaining twice as many tokens as there are slots.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=_DEFAULT.window,
    show_default=True,
    help="Steps that are trained on at once; more than the memory has slots.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=_DEFAULT.iterations,
    show_default=True,
    help="Optimiser steps.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULT.learning_rate,
    show_default=True,
    help="Peak; cosine down to nothing.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of where windows begin.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The gates (.safetensors).",
)
@click.option("--json", "as_json", is_flag=True, help="Print what they are worth as JSON.")
def train_retention_command(
    model: str,
    episode_paths: tuple[Path, ...],
    steps: int,
    count: int,
    capacity_price: float,
    window: int,
    iterations: int,
    learning_rate: float,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train what MODEL, a TRIM-KV, retains; everything else of it stays as it is.

    \b
    Example:
      stategate train-retention my.py:policy --episode logs/ --out build/gates.safetensors
    """
    if out.suffix != ".safetensors":
        raise ResultError("gates have the suffix .safetensors", found=out)
    check_writable(out)

    from stategate.calibration.gates.retention import lived_error, train_retention
    from stategate.models.load import load_model
    from stategate.models.memories.trim_kv.cell import TrimKv
    from stategate.models.weights import save_part, weights_sha256

    loaded = load_model(model)
    if not isinstance(loaded.module, TrimKv):
        raise CalibrationError(
            "only a TRIM-KV has retention gates",
            found=f"{type(loaded.module).__name__} from {model}",
            expected="a stategate.models.memories.trim_kv.cell.TrimKv",
            remedy="for other families: stategate train-gate",
        )
    module, made_for = loaded.module, weights_sha256(loaded.module)
    found, _, _ = episodes_for(loaded, episode_paths, steps, count)
    *training, held_out = found
    if not training:
        raise click.UsageError("two episodes at least: the last one is held out")
    recipe = RetentionRecipe(
        capacity_price, seed, iterations, window=window, learning_rate=learning_rate
    )
    before = lived_error(module, held_out)
    with progress(iterations, "training the gates") as report:
        train_retention(module, training, recipe, report)
    after = lived_error(module, held_out)
    save_part(out, dict(module.retention_gates()), made_for)
    if as_json:
        click.echo(json.dumps({"error_before": before, "error_after": after}, indent=2))
        return
    click.echo(
        f"output error against all of the past, held out: {before:.3g} untrained, "
        f"{after:.3g} trained\nwritten: {out}"
    )
