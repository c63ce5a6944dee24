"""``stategate export`` and ``quantise``: a torch module becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    COUNT,
    EXISTING,
    EXISTING_FILE,
    accept_option,
    check_steps_option,
    engines_option,
    episode_option,
    flag,
    input_options,
    json_option,
    observes_option,
    option,
    out_option,
    precision_option,
    ranges_option,
    safe_option,
    sessions_option,
    split_option,
    state_options,
    target_option,
)
from stategate.contract import refuse_to_replace
from stategate.models.source import model_argument
from stategate.targets import load

_calibration_option = option(
    "--calibration",
    multiple=True,
    type=EXISTING_FILE,
    help="Record with a gate's threshold, from: stategate calibrate; repeat for other gates.",
)


@click.command()
@model_argument
@out_option("The bundle's folder.")
@_calibration_option
@sessions_option
@option(
    "--operators",
    type=click.Choice(["portable", "onnx-27", "ort"]),
    default="portable",
    help="Primitive operators that every engine has, opset 27's linear attention, or ONNX "
    "Runtime's own, which is the fastest there.",
)
@split_option
@engines_option
@safe_option
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
@precision_option("float32")
@ranges_option
@state_options
@accept_option
@target_option
@input_options
@observes_option
@option(
    "--max-state-bytes", type=COUNT, help="Budget: refuse a larger memory, all sessions together."
)
@option(
    "--health",
    type=EXISTING,
    help="Learn a health envelope on these recordings, a .npz or a folder of them.",
)
@json_option
def export(
    model: str,
    out: Path,
    target: str | None,
    health: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
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
    profile = load(target) if target else None
    refuse_to_replace(out)  # what is refused here is refused before torch is imported

    import stategate
    from stategate.cli.receipt import print_receipt

    bundle = stategate.make(model, out, target=profile, **options)
    if health is not None:
        bundle = stategate.learn_health(bundle, health, out)
    print_receipt(bundle, as_json)


@click.command()
@model_argument
@out_option("The bundle's folder.")
@_calibration_option
@precision_option("int8")
@ranges_option
@state_options
@accept_option
@episode_option(", for ranges and for the check; a zoo model has its own.")
@check_steps_option
@engines_option
@safe_option
@target_option
@observes_option
@json_option
def quantise(
    model: str,
    out: Path,
    target: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a bundle of MODEL in lower precision, and measure the ranges that it needs.

    What comes out is a candidate: stategate drift judges it beside the float bundle, and seals it.

    \b
    Examples:
      stategate quantise aura-hard --out build/int8
      stategate quantise my_policy.py:MyPolicy --episode logs/ --out build/int8
    """
    if target:
        load(target)
    refuse_to_replace(out)

    import stategate
    from stategate.cli.receipt import print_receipt

    print_receipt(stategate.quantise(model, out, target=target, **options), as_json)
