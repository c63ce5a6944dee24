"""``stategate export``: a torch module becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stategate.common.console import progress
from stategate.contract import (
    Budget,
    CalibrationRecord,
    refuse_to_replace,
)
from stategate.export.engines_cli import deployed, engine_options
from stategate.export.inputs import input_options, parsed_ranges
from stategate.export.precision import Lower, precision_options
from stategate.export.safe import safe_option, with_safe
from stategate.export.storage_cli import storage_options
from stategate.models.source import model_argument
from stategate.targets import generic, load

if TYPE_CHECKING:
    from stategate.export.passes.choose_split import Asked


@click.command()
@model_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@click.option(
    "--calibration",
    "calibration_paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Record with a gate's threshold, from: stategate calibrate; repeat for other gates.",
)
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
@safe_option
@click.option(
    "--require-tensorrt",
    is_flag=True,
    help="Refuse a step that a TensorRT of the target would not take, instead of saying so.",
)
@precision_options
@storage_options
@click.option("--target", help="Device it is for; this machine's if left out.")
@input_options
@click.option(
    "--max-state-bytes",
    type=click.IntRange(min=1),
    help="Budget: refuse a larger memory, all sessions together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def export(
    model: str,
    out: Path,
    calibration_paths: tuple[Path, ...],
    sessions: int,
    operators: str,
    split: Asked,
    engines: str,
    safe: tuple[str, ...],
    require_tensorrt: bool,
    target: str | None,
    episode_path: Path | None,
    input_ranges: tuple[str, ...],
    steps: int,
    max_state_bytes: int | None,
    as_json: bool,
    **precision: Any,
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
    lower = Lower.asked(**precision)
    ranges = parsed_ranges(input_ranges)
    profile = load(target) if target else generic()
    refuse_to_replace(out)

    from stategate.export.candidates import candidate_from, episode_for, reference_for
    from stategate.export.seal.answers import taking
    from stategate.export.seal.pack import seal
    from stategate.export.seal.receipt import print_receipt
    from stategate.export.seal.rounding import strict_limits
    from stategate.export.tensorrt.target import with_tensorrt_told
    from stategate.models.load import load_model

    loaded = load_model(model)
    candidate = with_safe(candidate_from(loaded, sessions, operators), safe)
    for path in calibration_paths:
        candidate = candidate.calibrated(CalibrationRecord.load(path))
    reference = reference_for(loaded.model, candidate)
    candidate = with_tensorrt_told(lower.of(candidate, profile), profile, required=require_tensorrt)
    episode, inputs = episode_for(loaded, candidate, episode_path, steps, ranges)
    candidate = deployed(candidate, engines, split, episode, here=target is None)
    limits = lower.limits
    if limits.flip_rate is None:
        with taking(loaded.name, episode, inputs, 0):
            limits = strict_limits(loaded.model, candidate, episode)
    if limits.because:
        click.echo(f"errors may be {limits.error:.2g}: {limits.because}", err=True)
    with progress(episode.steps, "verifying") as report:
        bundle = seal(
            out,
            candidate,
            reference,
            episode,
            target=profile.ref(this_machine=target is None),
            budget=Budget(max_state_bytes),
            limits=limits,
            report=report,
            inputs=inputs,
            measure=True,
        )
    print_receipt(bundle, as_json)
