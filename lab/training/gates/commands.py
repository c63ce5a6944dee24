"""``python -m lab train-gate`` and ``train-retention``: gates for a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lab.training.gates.recipes import GateRecipe, RetentionRecipe
from stategate.cli.options import (
    COUNT,
    FILE,
    POSITIVE,
    PRICE,
    Verb,
    episodes_option,
    group_of,
    option,
    out_option,
    seed_option,
    verb,
    zoo_options,
)
from stategate.cli.show import show
from stategate.contract.durable import check_writable
from stategate.contract.errors import ResultError
from stategate.models.source import model_argument

_GATE, _RETENTION = GateRecipe(), RetentionRecipe()


def _iterations(default: int) -> Callable[[Verb], Verb]:
    return option("--iterations", type=COUNT, default=default, help="Optimiser steps.")


_inputs = group_of(
    model_argument, episodes_option("Inputs, the last file held out"), zoo_options(2)
)
_results = group_of(seed_option(), out_option("The trained part (.safetensors).", FILE))


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ResultError("a trained part has the suffix .safetensors", found=out)
    check_writable(out)


@verb("train-gate")
@_inputs
@option(
    "--write-price",
    type=PRICE,
    default=_GATE.write_price,
    help="Price of writing in every step, in units of the error that training lowers.",
)
@_iterations(_GATE.iterations)
@_results
def train_gate_command(
    model: str,
    episodes: tuple[Path, ...],
    steps: int,
    count: int,
    out: Path,
    **recipe: Any,
) -> None:
    """Train a gate over the whole memory of MODEL, which stays as it is.

    \b
    Example:
      python -m lab train-gate my.py:policy --episode logs/ --out build/gate.safetensors
    """
    _check_out(out)

    from lab.training.gates.make import make_gate

    result = make_gate(
        model, out, episodes or None, steps=steps, count=count, recipe=GateRecipe(**recipe)
    )
    lines = [
        f"{name} gate: writes {judged.write_rate:.2%} of steps, "
        f"output error {judged.output_error:.3g} against writing always"
        for name, judged in (("trained", result.trained), ("random", result.random))
    ]
    show(result, [*lines, f"written: {out}"])


@verb("train-retention")
@_inputs
@option(
    "--capacity-price",
    type=PRICE,
    default=_RETENTION.capacity_price,
    help="Price of retaining twice as many tokens as there are slots.",
)
@option(
    "--window",
    type=click.IntRange(min=2),
    default=_RETENTION.window,
    help="Steps that are trained on at once; more than the memory has slots.",
)
@option(
    "--learning-rate",
    type=POSITIVE,
    default=_RETENTION.learning_rate,
    help="Peak; cosine down to nothing.",
)
@_iterations(_RETENTION.iterations)
@_results
def train_retention_command(
    model: str,
    episodes: tuple[Path, ...],
    steps: int,
    count: int,
    out: Path,
    **recipe: Any,
) -> None:
    """Train what MODEL, a TRIM-KV, retains; everything else of it stays as it is.

    \b
    Example:
      python -m lab train-retention my.py:policy --episode logs/ --out build/gates.safetensors
    """
    _check_out(out)

    from lab.training.gates.make import make_retention

    result = make_retention(
        model, out, episodes or None, steps=steps, count=count, recipe=RetentionRecipe(**recipe)
    )
    line = (
        f"output error against all of the past, held out: {result.error_before:.3g} untrained, "
        f"{result.error_after:.3g} trained"
    )
    show(result, [line, f"written: {out}"])
