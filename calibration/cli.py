"""``stategate calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.calibration.gate import TOLERANCE, calibrate_gate
from stategate.contract import CalibrationRecord, canonical_json, load_episode
from stategate.contract.console import check_writable, progress, write_whole
from stategate.contract.specs import is_threshold
from stategate.models.checkpoint import weights_sha256
from stategate.models.load import load_model

_CALIBRATION_SEED = 3_000_017  # neither the training's nor the held-out episode's


@click.command()
@click.argument("model")
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled inputs, a .npz or a folder of them; for a zoo model its benchmark if left out.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=16_384, show_default=True, help="For the zoo."
)
@click.option(
    "--thresholds",
    default="-4,-3,-2,-1,0,1",
    show_default=True,
    help="What to try, separated by commas.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1),
    default=TOLERANCE,
    show_default=True,
    help="Accuracy that may be given up for fewer writes.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def calibrate(
    model: str,
    episode_path: Path | None,
    steps: int,
    thresholds: str,
    tolerance: float,
    out: Path,
    as_json: bool,
) -> None:
    """Choose the gate's threshold for MODEL, a zoo name or path/to/module.py:factory.

    \b
    Example:
      stategate calibrate aura-hard --out build/calibration.json
    """
    try:
        values = [float(part) for part in thresholds.split(",")]
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="--thresholds") from problem
    if not all(is_threshold(value) for value in values):
        raise click.BadParameter("thresholds must be finite in float32", param_hint="--thresholds")
    check_writable(out)
    loaded = load_model(model)
    if episode_path is not None:
        episode, source = load_episode(episode_path), episode_path.name
    elif loaded.episode is not None:
        episode = loaded.episode(steps, _CALIBRATION_SEED)
        source = f"the controlled benchmark, seed {_CALIBRATION_SEED}"
    else:
        raise click.UsageError("a model of your own needs --episode FILE.npz with labels")
    with progress(episode.steps, "calibrating") as report:
        gate = calibrate_gate(loaded.model, episode, values, tolerance, report)
    record = CalibrationRecord(weights_sha256(loaded.module), source, episode.steps, (gate,))
    raw = canonical_json(record)
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    for point in gate.curve:
        mark = "  <- chosen" if point.threshold == gate.threshold else ""
        click.echo(
            f"threshold {point.threshold:>6g}: accuracy {point.accuracy:.4f}, "
            f"writes {point.write_rate:.2%} of steps{mark}"
        )
    click.echo(f"{gate.rule}: {out}")
