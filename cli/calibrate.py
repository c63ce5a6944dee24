"""``stategate calibrate``, ``recalibrate``, ``ranges`` and ``health``: what episodes say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import stategate
from stategate.calibration.settings import TOLERANCE, Wish
from stategate.cli.options import (
    BUNDLE,
    FILE,
    POSITIVE,
    PRICE,
    SHARE,
    cluster_option,
    command_with,
    episodes_option,
    option,
    out_option,
    verb,
    zoo_options,
)
from stategate.cli.show import show
from stategate.contract import CalibrationRecord
from stategate.contract.calibration import CurvePoint
from stategate.contract.precision import RangeRecord, TensorRange
from stategate.contract.specs import is_threshold
from stategate.models.source import model_argument

_GROWTH = 1.25  # of the root mean square, from one decade of steps to the next
_gate_option = click.option("--gate", help="Which hard gate, where there are several.")
_record_option = out_option("The record (.json).", FILE)


def _thresholds(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """Thresholds separated by commas."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from problem
    if not all(is_threshold(value) for value in values):
        raise click.BadParameter("thresholds must be finite in float32")
    return values


@verb()
@model_argument
@episodes_option("Inputs, with labels where the rule needs them")
@zoo_options(1)
@_gate_option
@option(
    "--thresholds",
    callback=_thresholds,
    help="What to try, separated by commas; from quantiles of the gate's own values, if left out.",
)
@option(
    "--tolerance",
    type=SHARE,
    default=TOLERANCE,
    help="Accuracy that may be given up for fewer writes; the rule if no other is given.",
)
@option("--accuracy", type=SHARE, help="Choose the fewest writes with this accuracy.")
@option(
    "--write-rate",
    type=SHARE,
    help="Choose the threshold that opens this share of the gate's elements.",
)
@option(
    "--max-output-error",
    type=PRICE,
    help="Choose the fewest writes with this error of outputs against the plain model; needs no "
    "labels.",
)
@cluster_option
@_record_option
def calibrate(
    model: str,
    episodes: tuple[Path, ...],
    cluster: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Choose a gate's threshold for MODEL, a zoo name or path/to/module.py:factory.

    \b
    Examples:
      stategate calibrate aura-hard --out build/calibration.json
      stategate calibrate kda --max-output-error 0.1 --out build/calibration.json
      stategate calibrate my.py:policy --episode logs/ --write-rate 0.2 --out build/calibration.json
      stategate calibrate my.py:policy --episode logs/ --write-rate 0.2 --cluster local --out c.json
    """
    rules = ("tolerance", "accuracy", "write_rate", "max_output_error")
    Wish(**{rule: options[rule] for rule in rules})  # refused before torch is imported
    if cluster is not None and not episodes:
        raise click.UsageError("--cluster rolls files: name them with --episode")
    record = stategate.calibrate(model, episodes or None, cluster=cluster, **options)
    show(record, _curve(record, out), out)


@verb()
@click.argument("float_bundle", type=BUNDLE)
@click.argument("candidate", type=BUNDLE)
@episodes_option("Held-out inputs", required=True)
@_gate_option
@_record_option
def recalibrate(
    float_bundle: Path, candidate: Path, episodes: tuple[Path, ...], gate: str | None, out: Path
) -> None:
    """Choose the threshold at which CANDIDATE decides most like FLOAT_BUNDLE.

    \b
    Example:
      stategate model recalibrate build/aura build/int8 --episode held-out/ --out build/c.json
    """
    from stategate.calibration.thresholds import recalibrate as thresholds

    swapped = command_with(candidate, float_bundle)
    record = thresholds.recalibrate(float_bundle, candidate, episodes, gate=gate, swapped=swapped)
    show(record, _curve(record, out), out)


@verb()
@click.argument("bundle", type=BUNDLE)
@episodes_option("Recorded inputs", required=True)
@cluster_option
@_record_option
def ranges(bundle: Path, episodes: tuple[Path, ...], cluster: str | None, out: Path) -> None:
    """Measure how large the tensors of BUNDLE become, rolled in closed loop on its own state.

    The bundle is the float one; its model's weights are what the record is good for. Recordings
    are read a block at a time, however long they are.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate model ranges build/aura --episode log.npz --out build/ranges.json
      stategate export aura-hard --precision int8 --ranges build/ranges.json --out build/small
    """
    from stategate.calibration.ranges.record import measure_ranges

    record = measure_ranges(bundle, episodes, cluster=cluster)
    show(record, _sizes(record, out), out)


@verb()
@click.argument("bundle", type=BUNDLE)
@episodes_option("What it meets in use", required=True)
@option(
    "--false-alarm",
    "steps",
    type=POSITIVE,
    default=1_000_000,
    help="Steps between two false alarms, on average and at least.",
)
@out_option("The copy's folder; the bundle's own to replace it.")
def health(bundle: Path, episodes: tuple[Path, ...], steps: float, out: Path) -> None:
    """Learn what BUNDLE meets, and write a copy that notices when a stream leaves it.

    \b
    Examples:
      stategate model health build/policy --episode logs/ --out build/watched
      stategate model health build/policy --episode logs/ --false-alarm 100000 --out build/watched
    """
    from stategate.calibration.health.learn import learn_health

    learned = learn_health(bundle, episodes, out, steps_per_false_alarm=steps)
    envelope = learned.manifest.health
    assert envelope is not None
    show(envelope, [*envelope.lines(), f"written: {learned.path}"])


def _sizes(record: RangeRecord, out: Path) -> Iterator[str]:
    width = max(len(tensor.name) for tensor in record.tensors)
    for tensor in record.tensors:
        yield f"{tensor.name:<{width}}  {_by_decade(tensor)}"
    yield f"{len(record.tensors)} tensors over {record.steps:,} steps: {out}"


def _by_decade(tensor: TensorRange) -> str:
    """Largest magnitude by decade of steps, and whether the tensor still grows.

    A maximum grows with the number of samples alone, so growth is judged by root mean square.
    """
    sizes = [math.hypot(h.mean, h.deviation) for h in tensor.horizons]
    shown = "  ".join(f"to {h.to_step:,}: {max(-h.low, h.high):.4g}" for h in tensor.horizons)
    grows = len(sizes) > 1 and sizes[-1] > _GROWTH * sizes[-2]
    return f"{shown}{'  <- still growing' if grows else ''}"


def _curve(record: CalibrationRecord, out: Path) -> Iterator[str]:
    (gate,) = record.gates
    for point in gate.curve:
        yield line_of(point) + ("  <- chosen" if point.threshold == gate.threshold else "")
    if all(point.write_interval is None for point in gate.curve):
        yield "confidence: unknown, from one episode; give two or more"
    yield f"{gate.rule}: {out}"


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
    if point.flip_rate is not None:
        parts.append(f"flips {point.flip_rate:.3%}")
    return ", ".join(parts)
