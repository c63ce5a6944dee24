"""``stategate export`` and ``quantise``: a torch module becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    COUNT,
    EXISTING,
    EXISTING_FILE,
    check_steps_option,
    episode_option,
    flag,
    making_options,
    option,
    verb,
    whole_options,
)
from stategate.models.source import model_argument

_calibration_option = option(
    "--calibration",
    multiple=True,
    type=EXISTING_FILE,
    help="Record with a gate's threshold, from: stategate calibrate; repeat for other gates.",
)


@verb()
@model_argument
@making_options("float32")
@whole_options
@_calibration_option
@option(
    "--operators",
    type=click.Choice(["portable", "onnx-27", "ort"]),
    default="portable",
    help="Primitive operators that every engine has, opset 27's linear attention, or ONNX "
    "Runtime's own, which is the fastest there.",
)
@option(
    "--defer",
    metavar="WRITES",
    help="Write the matrices of the memory once in so many writes, with the same answers; auto for "
    "the fastest on this machine, by measurement, or fewest-bytes.",
)
@flag(
    "--require-tensorrt",
    "Refuse a step that a TensorRT of the target would not take, instead of saying so.",
)
@option(
    "--max-state-bytes", type=COUNT, help="Budget: refuse a larger memory, all sessions together."
)
@option(
    "--health",
    type=EXISTING,
    help="Learn a health envelope on these recordings, a .npz or a folder of them.",
)
def export(model: str, out: Path, health: Path | None, **options: Any) -> None:
    """Make a bundle from MODEL, a zoo name or path/to/module.py:factory.

    Traces one step, checks it against the model in closed loop, and writes the bundle only if
    outputs, states and every gate decision agree.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate export my_policy.py:MyPolicy --out build/mine
      stategate export aura-hard --sessions 4 --out build/pool
      stategate export aura-hard --split read-write --out build/two
      stategate export aura-hard --engines onnxruntime,native --out build/fast
      stategate export aura-hard --precision int8-weights --out build/small
      stategate export aura-hard --state-storage S=int8 --error-feedback --out build/small
    """
    import stategate
    from stategate.cli.receipt import print_receipt

    bundle = stategate.make(model, out, **options)
    if health is not None:
        bundle = stategate.learn_health(bundle, health, out)
    print_receipt(bundle)


@verb()
@model_argument
@making_options("int8")
@_calibration_option
@episode_option(", for ranges and for the check; a zoo model has its own.")
@check_steps_option
def quantise(model: str, out: Path, **options: Any) -> None:
    """Make a bundle of MODEL in lower precision, and measure the ranges that it needs.

    What comes out is a candidate: stategate drift judges it beside the float bundle, and seals it.

    \b
    Examples:
      stategate quantise aura-hard --out build/int8
      stategate quantise my_policy.py:MyPolicy --episode logs/ --out build/int8
    """
    import stategate
    from stategate.cli.receipt import print_receipt

    print_receipt(stategate.quantise(model, out, **options))
