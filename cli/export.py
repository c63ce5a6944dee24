"""``stategate export`` and ``quantise``: a torch module becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    STEPS,
    accept_option,
    engine_options,
    engines_option,
    input_options,
    input_ranges_of,
    json_option,
    kinds_of,
    out_option,
    precision_options,
    ranges_option,
    safe_of,
    safe_option,
    state_options,
    target_option,
)
from stategate.contract import refuse_to_replace
from stategate.contract.precision import PrecisionPlan
from stategate.models.source import model_argument
from stategate.targets import load

_calibration_option = click.option(
    "--calibration",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Record with a gate's threshold, from: stategate calibrate; repeat for other gates.",
)


@click.command()
@model_argument
@out_option("The bundle's folder.")
@_calibration_option
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sessions that one step serves; more than one makes a bundle for a pool.",
)
@click.option(
    "--operators",
    type=click.Choice(["portable", "onnx-27", "ort", "fastest"]),
    default="portable",
    show_default=True,
    help="Primitive operators that every engine has, opset 27's linear attention, ONNX Runtime's "
    "own, or whichever is fastest on this machine, by measurement.",
)
@engine_options
@click.option(
    "--require-tensorrt",
    is_flag=True,
    help="Refuse a step that a TensorRT of the target would not take, instead of saying so.",
)
@precision_options
@state_options
@accept_option
@target_option
@input_options
@click.option(
    "--max-state-bytes",
    type=click.IntRange(min=1),
    help="Budget: refuse a larger memory, all sessions together.",
)
@json_option
def export(
    model: str,
    out: Path,
    precision: str,
    target: str | None,
    input_ranges: tuple[str, ...],
    safe: tuple[str, ...],
    state_storage: tuple[str, ...],
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
    options |= {
        "input_ranges": input_ranges_of(input_ranges),
        "safe": safe_of(safe),
        "state_precision": kinds_of(state_storage),
        "precision": PrecisionPlan.named(precision),
        "target": load(target) if target else None,
    }
    refuse_to_replace(out)  # what is refused here is refused before torch is imported

    import stategate
    from stategate.cli.receipt import print_receipt

    print_receipt(stategate.make(model, out, **options), as_json)


@click.command()
@model_argument
@out_option("The bundle's folder.")
@_calibration_option
@click.option(
    "--precision",
    default="int8",
    show_default=True,
    help="int8, int8-weights, int4-weights, float16-weights, or a plan's .json file.",
)
@ranges_option
@state_options
@accept_option
@click.option(
    "--episode",
    type=click.Path(exists=True, path_type=Path),
    help="Recorded inputs, a .npz or a folder of them, for ranges and for the check; a zoo model "
    "has its own.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=STEPS,
    show_default=True,
    help="Closed-loop steps of the check.",
)
@engines_option
@safe_option
@target_option
@json_option
def quantise(
    model: str,
    out: Path,
    precision: str,
    target: str | None,
    safe: tuple[str, ...],
    state_storage: tuple[str, ...],
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
    options |= {
        "safe": safe_of(safe),
        "state_precision": kinds_of(state_storage),
        "precision": PrecisionPlan.named(precision),
    }
    if target:
        load(target)
    refuse_to_replace(out)

    import stategate
    from stategate.cli.receipt import print_receipt

    print_receipt(stategate.quantise(model, out, target=target, **options), as_json)
