"""``stategate calibrate``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stategate.calibration.settings import TOLERANCE, Wish
from stategate.cli.episode_options import (
    cluster_option,
    episodes_for,
    episodes_option,
    gate_option,
    record_options,
    zoo_options,
)
from stategate.common.console import progress
from stategate.contract import CalibrationRecord, CurvePoint, Episode, EpisodeSet, canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.specs import is_threshold
from stategate.models.source import model_argument

if TYPE_CHECKING:
    from stategate.calibration.episodes import Fleet


def numbers(text: str, option: str) -> list[float]:
    """Thresholds separated by commas.

    Raises:
        BadParameter: One of them is none.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint=option) from problem
    if not all(is_threshold(value) for value in values):
        raise click.BadParameter("thresholds must be finite in float32", param_hint=option)
    return values


@click.command()
@model_argument
@episodes_option("Inputs, with labels where the rule needs them")
@zoo_options(1)
@gate_option
@click.option(
    "--thresholds",
    help="What to try, separated by commas; from quantiles of the gate's own values, if left out.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1),
    default=TOLERANCE,
    show_default=True,
    help="Accuracy that may be given up for fewer writes; the rule if no other is given.",
)
@click.option(
    "--accuracy",
    type=click.FloatRange(min=0, max=1),
    help="Choose the fewest writes with this accuracy.",
)
@click.option(
    "--write-rate",
    type=click.FloatRange(min=0, max=1),
    help="Choose the threshold that opens this share of the gate's elements.",
)
@click.option(
    "--max-output-error",
    type=click.FloatRange(min=0),
    help="Choose the fewest writes with this error of outputs against the plain model; needs no "
    "labels.",
)
@click.option(
    "--cost-missed",
    type=click.FloatRange(min=0),
    help="Choose the least cost; price of a step that should have written.",
)
@click.option(
    "--cost-needless",
    type=click.FloatRange(min=0),
    help="Choose the least cost; price of a step that need not have written.",
)
@cluster_option
@record_options
def calibrate(
    model: str,
    episode_paths: tuple[Path, ...],
    steps: int,
    count: int,
    gate_name: str | None,
    thresholds: str | None,
    tolerance: float,
    accuracy: float | None,
    write_rate: float | None,
    max_output_error: float | None,
    cost_missed: float | None,
    cost_needless: float | None,
    cluster: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Choose a gate's threshold for MODEL, a zoo name or path/to/module.py:factory.

    \b
    Examples:
      stategate calibrate aura-hard --out build/calibration.json
      stategate calibrate kda --max-output-error 0.1 --out build/calibration.json
      stategate calibrate my.py:policy --episode logs/ --write-rate 0.2 --out build/calibration.json
      stategate calibrate my.py:policy --episode logs/ --write-rate 0.2 --cluster local --out c.json
    """
    values = None if thresholds is None else numbers(thresholds, "--thresholds")
    costs = None
    if cost_missed is not None or cost_needless is not None:
        if cost_missed is None or cost_needless is None:
            raise click.UsageError("--cost-missed and --cost-needless go together")
        costs = (cost_missed, cost_needless)
    wish = Wish(tolerance, accuracy, write_rate, max_output_error, costs)
    if cluster is not None and not episode_paths:
        raise click.UsageError("--cluster rolls files: name them with --episode")
    check_writable(out)

    from stategate.calibration.closed_loop import hard_gate
    from stategate.calibration.episodes import Fleet, connected
    from stategate.calibration.thresholds.curve import calibrate_gate
    from stategate.models.load import load_model
    from stategate.models.weights import weights_sha256

    loaded = load_model(model)
    hard_gate(loaded.model.step_spec(), gate_name)  # before anything is asked for
    sha256 = weights_sha256(loaded.module)
    episodes: Iterable[Episode] | Fleet
    episodes, total, source = episodes_for(loaded, episode_paths, steps, count)
    rounds = wish.rounds(proposed=values is None)
    with ExitStack() as stack:
        if cluster is not None:
            client = stack.enter_context(connected(cluster))
            found = EpisodeSet.open(*episode_paths)
            episodes = Fleet(_anywhere(model), sha256, found, client)
        report = stack.enter_context(progress(total * rounds, "calibrating"))
        gate = calibrate_gate(loaded.model, episodes, values, wish, gate_name, report)
    record = CalibrationRecord(sha256, source, total, (gate,))
    raw = canonical_json(record)
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    for point in gate.curve:
        click.echo(line_of(point) + ("  <- chosen" if point.threshold == gate.threshold else ""))
    if all(point.write_interval is None for point in gate.curve):
        click.echo("confidence: unknown, from one episode; give two or more")
    click.echo(f"{gate.rule}: {out}")


def _anywhere(model: str) -> str:
    """The same model for a process that stands in another folder."""
    file, colon, factory = model.rpartition(":")
    return f"{Path(file).resolve()}:{factory}" if colon else model


def line_of(point: CurvePoint) -> str:
    """A threshold and what it does, for the reader."""
    parts = [f"threshold {point.threshold:>10.6g}: writes {point.element_rate:.2%}"]
    if point.write_interval is not None:
        parts[0] += f" ({point.write_interval.low:.2%} to {point.write_interval.high:.2%})"
    if point.write_rate != point.element_rate:
        parts[0] += f" of elements, in {point.write_rate:.2%} of steps"
    if point.accuracy is not None:
        parts.append(f"accuracy {point.accuracy:.4f}")
        if point.accuracy_interval is not None:
            low, high = point.accuracy_interval.low, point.accuracy_interval.high
            parts[-1] += f" ({low:.4f} to {high:.4f})"
    if point.output_error is not None:
        parts.append(f"output error {point.output_error:.3g}")
    if point.missed_rate is not None and point.needless_rate is not None:
        parts.append(f"missed {point.missed_rate:.2%}, needless {point.needless_rate:.2%}")
    if point.flip_rate is not None:
        parts.append(f"flips {point.flip_rate:.3%}")
    return ", ".join(parts)
