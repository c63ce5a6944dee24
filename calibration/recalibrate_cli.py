"""``stategate recalibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.calibration.cli import EpisodeFiles, line_of
from stategate.calibration.recalibrate import ROUNDS, recalibrate
from stategate.contract import Bundle, CalibrationRecord, canonical_json
from stategate.contract.console import check_writable, progress, write_whole

_BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("recalibrate")
@click.argument("float_bundle", type=_BUNDLE)
@click.argument("candidate", type=_BUNDLE)
@click.option(
    "--episode",
    "episode_paths",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Held-out inputs (.npz, or a folder of them); repeat for more.",
)
@click.option("--gate", "gate_name", help="Which hard gate, where there are several.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def recalibrate_command(
    float_bundle: Path,
    candidate: Path,
    episode_paths: tuple[Path, ...],
    gate_name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Choose the threshold at which CANDIDATE decides most like FLOAT_BUNDLE.

    \b
    Example:
      stategate recalibrate build/aura build/aura-int8 --episode held-out/ --out build/int8.json
    """
    check_writable(out)
    episodes = EpisodeFiles.find(episode_paths)
    total = sum(episode.steps for episode in episodes)
    with progress(total * ROUNDS, "recalibrating") as report:
        gate = recalibrate(float_bundle, candidate, episodes, gate_name, report)
    source = ", ".join(path.name for path in episode_paths)
    weights = Bundle.open(candidate).manifest.model.sha256
    raw = canonical_json(CalibrationRecord(weights, source, total, (gate,)))
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    for point in gate.curve:
        click.echo(line_of(point) + ("  <- chosen" if point.threshold == gate.threshold else ""))
    click.echo(f"{gate.rule}: {out}")
