"""``stategate train-gate`` and ``train-retention``: gates for a model that stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import click

from stategate.calibration.settings import GateRecipe, RetentionRecipe
from stategate.cli.options import (
    Verb,
    episodes_option,
    group_of,
    json_option,
    out_option,
    seed_option,
    zoo_options,
)
from stategate.common.console import progress
from stategate.contract import Episode
from stategate.contract.durable import check_writable
from stategate.contract.errors import CalibrationError, EpisodeError, ResultError
from stategate.models.source import model_argument

_GATE, _RETENTION = GateRecipe(), RetentionRecipe()


def _iterations(default: int) -> Callable[[Verb], Verb]:
    return click.option(
        "--iterations",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Optimiser steps.",
    )


_inputs = group_of(
    model_argument, episodes_option("Inputs, the last file held out"), zoo_options(2)
)
_results = group_of(
    seed_option, out_option("The trained part (.safetensors).", folder=False), json_option
)


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ResultError("a trained part has the suffix .safetensors", found=out)
    check_writable(out)


def _parted(episodes: Iterable[Episode]) -> tuple[list[Episode], Episode]:
    """What is trained on, and the last one, which is held out."""
    *training, held_out = episodes
    if not training:
        raise EpisodeError("two episodes at least are needed: the last one is held out")
    return training, held_out


@click.command("train-gate")
@_inputs
@click.option(
    "--write-price",
    type=click.FloatRange(min=0),
    default=_GATE.write_price,
    show_default=True,
    help="Price of writing in every step, in units of the error that training lowers.",
)
@_iterations(_GATE.iterations)
@_results
def train_gate_command(
    model: str,
    episodes: tuple[Path, ...],
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
      stategate model train-gate my.py:policy --episode logs/ --out build/gate.safetensors
    """
    _check_out(out)

    import torch

    from stategate.calibration.gates.training import at_random, judge, train_gate
    from stategate.calibration.recordings import episodes_for
    from stategate.models.gates.learned import LearnedGate
    from stategate.models.load import load_model

    loaded = load_model(model)
    training, held_out = _parted(episodes_for(loaded, episodes or None, steps, count)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = LearnedGate(loaded.model)
    recipe = GateRecipe(write_price=write_price, seed=seed, iterations=iterations)
    with progress(iterations, "training the gate") as report:
        train_gate(gate, training, recipe, report)
    trained = judge(gate, [held_out], lambda logit: logit > gate.threshold)
    chance = judge(gate, [held_out], at_random(trained.write_rate, seed))
    gate.save_gate(out)
    if as_json:
        click.echo(json.dumps({"trained": asdict(trained), "random": asdict(chance)}, indent=2))
        return
    for name, judged in (("trained", trained), ("random", chance)):
        click.echo(
            f"{name} gate: writes {judged.write_rate:.2%} of steps, "
            f"output error {judged.output_error:.3g} against writing always"
        )
    click.echo(f"written: {out}")


@click.command("train-retention")
@_inputs
@click.option(
    "--capacity-price",
    type=click.FloatRange(min=0),
    default=_RETENTION.capacity_price,
    show_default=True,
    help="Price of retaining twice as many tokens as there are slots.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=_RETENTION.window,
    show_default=True,
    help="Steps that are trained on at once; more than the memory has slots.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=_RETENTION.learning_rate,
    show_default=True,
    help="Peak; cosine down to nothing.",
)
@_iterations(_RETENTION.iterations)
@_results
def train_retention_command(
    model: str,
    episodes: tuple[Path, ...],
    steps: int,
    count: int,
    capacity_price: float,
    window: int,
    learning_rate: float,
    iterations: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train what MODEL, a TRIM-KV, retains; everything else of it stays as it is.

    \b
    Example:
      stategate model train-retention my.py:policy --episode logs/ --out build/gates.safetensors
    """
    _check_out(out)

    from stategate.calibration.gates.retention import lived_error, train_retention
    from stategate.calibration.recordings import episodes_for
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
    training, held_out = _parted(episodes_for(loaded, episodes or None, steps, count)[0])
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
