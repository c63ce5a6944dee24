"""``stategate replay``: step again what a black box recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import stategate
from stategate.cli.options import ANY_PATH, COUNT, EXISTING_FILE, POSITIVE, json_option, option
from stategate.cli.show import Line, leave_unless, show
from stategate.contract.reading import printable
from stategate.runtime.check.golden import TOLERANCE
from stategate.runtime.check.replay import Moment, ReplayReport, Tensor

_FEW = 8  # numbers on a line


@click.command()
@click.argument("file", type=EXISTING_FILE)
@option("--bundle", type=ANY_PATH, required=True, help="The bundle that was recorded.")
@option("--at", type=COUNT, help="Stop after this step and show it.")
@option("--engine", help="What steps it; default: what recorded it, where it can be had.")
@option(
    "--tolerance",
    type=POSITIVE,
    default=TOLERANCE,
    help="Of states at keyframes, where an engine promises no bits; a share of their size.",
)
@json_option
def replay(
    file: Path,
    bundle: Path,
    at: int | None,
    engine: str | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Step what the black box FILE recorded once more, and compare it at every step.

    Exits with 1 where the recording has a gap, or does not come out as it was.

    \b
    Examples:
      stategate replay robot.rec --bundle build/policy
      stategate replay robot.rec --bundle build/policy --at 48210
    """
    report = stategate.replay(file, bundle, at=at, engine=engine, tolerance=tolerance)
    lines = [*_lines(report), *_moment_lines(report.moment)]
    record = {
        name: getattr(report, name)
        for name in (*ReplayReport.__dataclass_fields__, "bit_for_bit", "passed")
    }
    show(record, as_json, lines)
    leave_unless(report.passed)


def _lines(report: ReplayReport) -> Iterator[Line]:
    yield "model", f"{report.model} on {report.engine}"
    yield "recorded", f"by {printable(report.recorded_engine)}, {report.processes} processes"
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
        yield "bits", f"the same until step {report.parts_at}, and others from there on"
    if report.max_state_error is not None:
        yield "states", f"{report.max_state_error:.3g} of their size apart at keyframes"
    if report.problem:
        yield "FAILED: " + report.problem
    elif report.gaps:
        yield "FAILED: the recording has gaps; what is there was stepped again as it was"
    else:
        yield "passed: " + ("bit for bit" if report.bit_for_bit else "within the tolerance")


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
