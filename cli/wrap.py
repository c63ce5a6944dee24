"""``stategate wrap``: a frozen policy gets a memory and a gate, trained on its recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stategate.calibration.settings import WrapRecipe
from stategate.cli.options import (
    COUNT,
    EXISTING,
    POSITIVE,
    SHARE,
    bundle_out_option,
    check_steps_option,
    engines_option,
    option,
    seed_option,
    target_option,
    verb,
)
from stategate.cli.show import show, wants_json

_RECIPE = WrapRecipe()


def _threshold(_: click.Context, __: click.Parameter, text: str) -> float | str:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of 0 or less, and not auto") from None


@verb()
@click.argument("backbone", required=False)
@option(
    "--recordings",
    required=True,
    multiple=True,
    type=EXISTING,
    help="Episodes with inputs and actions (.npz, or a folder of them); repeat for more.",
)
@bundle_out_option("The bundle's folder; the report goes to OUT.json.")
@option(
    "--label",
    default="action",
    help="What the recordings call actions: label.NAME are classes, input.NAME numbers.",
)
@option("--actions", type=COUNT, help="Classes; as many as the labels show if left out.")
@option(
    "--allowed-loss",
    type=SHARE,
    default=0.005,
    help="Accuracy that fewer writes may cost; of numbers their error, in spreads.",
)
@option(
    "--price",
    type=POSITIVE,
    help="What a write must save, in nats or squared spreads; 0.1 if left out.",
)
@option(
    "--chunk",
    type=COUNT,
    help="Steps back-propagated through; by how rare hard labels are, if left out.",
)
@option("--iterations", type=COUNT, default=_RECIPE.iterations, help="Optimiser steps.")
@option(
    "--holdout",
    type=SHARE,
    default=_RECIPE.holdout,
    help="Share of the recordings, the last ones, that nothing is trained on.",
)
@option(
    "--threshold",
    default="auto",
    callback=_threshold,
    help="Of the gate, 0 or less; auto takes the highest that loses no more than is allowed.",
)
@option(
    "--backbone",
    "place",
    type=click.Choice(["auto", "inside", "apart"]),
    default="auto",
    help="Inside the step; or apart, as backbone.onnx of a bundle whose step takes features, so "
    "that both can have engines of their own. auto: inside, but a file apart.",
)
@seed_option()
@check_steps_option
@engines_option
@target_option
def wrap(
    backbone: str | None,
    recordings: tuple[Path, ...],
    out: Path,
    **options: Any,
) -> None:
    """Give a frozen policy a memory and a gate, trained on its own recordings.

    BACKBONE gives features: path/to/module.py:factory of a torch module, or an .onnx file. Left
    out: the recordings hold features, as input.features. One core and two minutes. Nothing is
    written where a memory is not needed or was not learned.

    \b
    Examples:
      stategate wrap backbone.py:policy --recordings logs/ --out build/wrapped
      stategate wrap encoder.onnx --recordings logs/ --out build/wrapped
      stategate wrap --recordings features/ --out build/memory
    """
    import stategate
    from stategate.cli.receipt import print_receipt

    result = stategate.wrap(backbone, recordings, out, **options)
    show(result.report, result.report.lines())
    if not wants_json():
        print_receipt(result.bundle)
