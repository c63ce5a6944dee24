"""``stategate replay``: step again what a black box recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import stategate
from stategate.cli.options import ANY_PATH, COUNT, EXISTING_FILE, POSITIVE, option, verb
from stategate.cli.show import Line, leave_unless, show
from stategate.contract.reading import printable
from stategate.runtime.base.tensor import Tensor
from stategate.runtime.check.bisect import BisectReport
from stategate.runtime.check.golden import TOLERANCE
from stategate.runtime.check.replay import Moment, ReplayReport

_FEW = 8  # numbers on a line


@verb()
@click.argument("file", type=EXISTING_FILE)
@option("--bundle", type=ANY_PATH, required=True, help="The bundle that was recorded.")
@option("--at", type=COUNT, help="Stop after this step and show it.")
@option(
    "--bisect",
    "other",
    type=ANY_PATH,
    help="Another bundle: find the first step in which the two decide differently.",
)
@option("--engine", help="What steps it; default: what recorded it, where it can be had.")
@option(
    "--tolerance",
    type=POSITIVE,
    default=TOLERANCE,
    help="Of states at keyframes where an engine promises no bits, and of outputs of --bisect; a "
    "share of their size.",
)
def replay(file: Path, bundle: Path, at: int | None, other: Path | None, **options: Any) -> None:
    """Step what the black box FILE recorded once more, and compare it at every step.

    Exits with 1 where the recording has a gap, does not come out as it was, or the other bundle
    decides differently.

    \b
    Examples:
      stategate replay robot.rec --bundle build/policy
      stategate replay robot.rec --bundle build/policy --at 48210
      stategate replay robot.rec --bundle build/policy --bisect build/smaller
    """
    if other is not None:
        if at is not None:
            raise click.UsageError("--at shows one bundle; leave --bisect away, or --at.")
        compared = stategate.bisect(file, bundle, other, **options)
        show(_record(compared), _differences(compared, bundle, other))
        leave_unless(compared.passed)
        return
    report = stategate.replay(file, bundle, at=at, **options)
    lines = [*_lines(report), *_moment_lines(report.moment)]
    show(_record(report), lines)
    leave_unless(report.passed)


def _record(report: ReplayReport | BisectReport) -> dict[str, object]:
    """Fields and properties of a report."""
    properties = [name for name in ("bit_for_bit", "first", "passed") if hasattr(report, name)]
    return {name: getattr(report, name) for name in (*report.__dataclass_fields__, *properties)}


def _differences(report: BisectReport, bundle: Path, other: Path) -> Iterator[Line]:
    yield "recorded", f"{bundle} on {report.engines[0]}"
    yield "other", f"{other} on {report.engines[1]}"
    yield "steps", f"{report.steps:,}: from {report.first_step} to {report.last_step}"
    kinds = {
        "fault": "fault",
        "gate": "gate",
        "largest": "largest element",
        "output": f"output beyond {report.tolerance:g}",
    }
    for name, label in kinds.items():
        difference = getattr(report, name)
        if difference is not None:
            yield f"first {label}", f"step {difference.step} {printable(difference.name)}"
            yield "  recorded", difference.recorded
            yield "  other", difference.other
    first = report.first
    yield "passed: both decide alike" if first is None else f"FAILED: they part at step {first}"


def _lines(report: ReplayReport) -> Iterator[Line]:
    yield "model", f"{report.model} on {report.engine}"
    yield "recorded", f"by {printable(report.recorded_engine)}, processes: {report.processes}"
    yield "steps", f"{report.steps:,}: from {report.first_step} to {report.last_step}"
    yield "writes", f"{report.writes:,}"
    if report.begins:
        yield "begun anew", f"{report.begins:,} times"
    if report.faults:
        yield "faults", f"{report.faults:,}, then as now"
    for gap in report.gaps:
        steps = f"steps {gap.after + 1} to {gap.before - 1}"
        where = steps if gap.before > gap.after + 1 else f"after step {gap.after}"
        yield "gap", f"{where}: {gap.why}"
    if report.parts_at is not None:
        yield "bits", f"others from step {report.parts_at} on"
    if report.max_state_error is not None:
        yield "states", f"{report.max_state_error:.3g} of their size apart at keyframes"
    if report.problem:
        yield "FAILED: " + report.problem
    elif report.gaps:
        yield "FAILED: the recording has gaps; what is there was stepped again as it was"
    elif report.bit_for_bit:
        yield "passed: bit for bit"
    elif report.max_state_error is None:
        yield "passed: writes agree; no keyframe between compares the states"
    else:
        yield "passed: within the tolerance"


def _moment_lines(moment: Moment | None) -> Iterator[Line]:
    if moment is None:
        return
    yield "", ""
    yield "step", f"{moment.step}, {'wrote' if moment.wrote else 'did not write'}"
    if moment.fault:
        yield "fault", moment.fault
    for kind in ("inputs", "outputs", "gates", "states"):
        for name, tensor in getattr(moment, kind).items():
            threshold = moment.thresholds.get(name) if kind == "gates" else None
            more = "" if threshold is None else f", threshold {threshold:g}"
            yield f"{kind[:-1]} {printable(name)}", _numbers(tensor) + more


def _numbers(tensor: Tensor) -> str:
    if 0 < len(tensor.values) <= _FEW:
        return " ".join(f"{value:.6g}" for value in tensor.values)
    shape = " x ".join(map(str, tensor.shape))
    return (
        f"{shape} {tensor.dtype} from {tensor.least:.4g} to {tensor.largest:.4g}, "
        f"mean {tensor.mean:.4g}, rms {tensor.rms:.4g}"
    )
