"""``stategate recalibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.calibration.drift.judge import check_judge
from stategate.cli.calibrate import line_of
from stategate.cli.episode_options import (
    BUNDLE,
    episodes_option,
    gate_option,
    record_options,
    told,
)
from stategate.cli.options import command_with
from stategate.common.console import progress
from stategate.contract import Bundle, CalibrationRecord, EpisodeSet, canonical_json
from stategate.contract.durable import check_writable, write_whole


@click.command("recalibrate")
@click.argument("float_bundle", type=BUNDLE)
@click.argument("candidate", type=BUNDLE)
@episodes_option("Held-out inputs", required=True)
@gate_option
@record_options
@click.pass_context
def recalibrate_command(
    ctx: click.Context,
    float_bundle: Path,
    candidate: Path,
    episode_paths: tuple[Path, ...],
    gate_name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Choose the threshold at which CANDIDATE decides most like FLOATBUNDLE.

    \b
    Example:
      stategate recalibrate build/aura build/aura-int8 --episode held-out/ --out build/int8.json
    """
    check_writable(out)
    episodes = EpisodeSet.open(*episode_paths)
    bundles = Bundle.open(float_bundle), Bundle.open(candidate)
    check_judge(*bundles, command_with(ctx, candidate, float_bundle))
    weights = [bundle.manifest.model.sha256 for bundle in bundles]
    if weights[0] != weights[1]:
        click.echo("note: the two bundles are not of the same weights", err=True)

    from stategate.calibration.thresholds.recalibrate import ROUNDS, recalibrate

    with progress(episodes.steps * ROUNDS, "recalibrating") as report:
        gate = recalibrate(float_bundle, candidate, episodes.loaded, gate_name, report)
    raw = canonical_json(
        CalibrationRecord(weights[1], told(episode_paths), episodes.steps, (gate,))
    )
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    for point in gate.curve:
        click.echo(line_of(point) + ("  <- chosen" if point.threshold == gate.threshold else ""))
    click.echo(f"{gate.rule}: {out}")
