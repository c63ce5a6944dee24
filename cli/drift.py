"""``stategate drift``: does a candidate still do what its float model does, after many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import stategate
from stategate.calibration.drift.record import DriftLimits, DriftReport, Point
from stategate.cli.options import command_with, json_option, out_option
from stategate.contract import canonical_json

_LIMITS = DriftLimits()
_SHARE = click.FloatRange(min=0)


@click.command()
@click.argument("reference", metavar="FLOAT", type=click.Path(exists=True, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--episode",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Held-out inputs: one .npz, or a folder of them; labels in them are judged.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 100_000_000),
    help="Steps of each episode, repeated if short; default: its own.",
)
@out_option("Folder for drift.json and drift.html.")
@click.option(
    "--max-output-error",
    "output_error",
    type=_SHARE,
    help="Largest output error, in units of the largest output; not judged if left out.",
)
@click.option(
    "--max-mean-error",
    "mean_error",
    type=_SHARE,
    default=_LIMITS.mean_error,
    show_default=True,
    help="Mean over the steps of the largest output error.",
)
@click.option(
    "--max-flip-rate",
    "flip_rate",
    type=_SHARE,
    default=_LIMITS.flip_rate,
    show_default=True,
    help="Share of gate decisions that may differ.",
)
@click.option(
    "--max-write-change",
    "write_change",
    type=_SHARE,
    default=_LIMITS.write_change,
    show_default=True,
    help="Difference of the write rates.",
)
@click.option(
    "--max-norm-growth",
    "norm_growth",
    type=_SHARE,
    default=_LIMITS.norm_growth,
    show_default=True,
    help="Largest norm of a state, in units of the float model's.",
)
@click.option(
    "--max-accuracy-loss",
    "accuracy_loss",
    type=_SHARE,
    default=_LIMITS.accuracy_loss,
    show_default=True,
    help="Accuracy that may be lost, where there are labels.",
)
@click.option(
    "--diverged-above",
    type=_SHARE,
    default=_LIMITS.diverged_above,
    show_default=True,
    help="Output error of the first diverging step that is reported.",
)
@click.option(
    "--seal",
    "sealed",
    type=click.Path(path_type=Path),
    help="Write the candidate as a sealed bundle there, if it passes or is accepted.",
)
@click.option(
    "--accept",
    metavar="WHO: WHY",
    help="Seal a candidate that is beyond its limits; the receipt keeps who did, and why.",
)
@json_option
def drift(
    reference: Path,
    candidate: Path,
    episode: Path,
    steps: int | None,
    out: Path,
    sealed: Path | None,
    accept: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Step FLOAT and CANDIDATE through the same episodes, each on its own state.

    Writes drift.json, and drift.html with plots. Exits with 1 where a limit is broken or the
    candidate fails; with --accept only where it fails.

    \b
    Example:
      stategate drift build/aura build/aura-int8 --episode held-out.npz --out build/drift \\
          --seal build/small
    """
    result = stategate.compare(
        reference,
        candidate,
        episode,
        steps=steps,
        limits=DriftLimits(**limits),
        out=out,
        sealed=sealed,
        accept=accept,
        swapped=command_with(candidate, reference),
    )
    if as_json:
        click.echo(canonical_json(result), nl=False)
    else:
        _tell(result, out)
    takes = sealed is not None and result.may_be_sealed(accept)
    if takes:
        acceptance = f", accepted by {accept}" if result.findings else ""
        click.echo(f"sealed: {sealed}{acceptance}", err=True)
    elif sealed is not None:
        click.echo(f"not sealed: {sealed}", err=True)
    click.get_current_context().exit(0 if result.passed or takes else 1)


def _tell(result: DriftReport, out: Path) -> None:
    click.echo(
        f"{result.candidate.model}: {result.candidate.state_bytes:,} bytes of state beside "
        f"{result.reference.state_bytes:,}, {len(result.episodes)} episode(s)"
    )
    for point in result.milestones:
        click.echo(_line(point))
    for name, (reference, candidate) in result.total.norms.items():
        click.echo(f"largest norm of state {name}: {reference:.5g} -> {candidate:.5g}")
    for what, first in (
        ("decision that differs", result.first_flip),
        (f"output error above {result.limits.diverged_above:g}", result.first_divergence),
    ):
        click.echo(f"first {what}: " + (f"step {first[0]:,} of {first[1]}" if first else "none"))
    for name, reason in result.not_compared.items():
        click.echo(f"not compared: {name}: {reason}")
    for finding in result.findings:
        click.echo(f"beyond: {finding}")
    click.echo(f"{'passed' if result.passed else 'FAILED'}: {out / 'drift.html'}")


def _line(point: Point) -> str:
    rates, accuracies = point.write_rates, point.accuracies
    accuracy = f", right {accuracies[0]:.2%} -> {accuracies[1]:.2%}" if accuracies else ""
    return (
        f"{point.step:>9,} steps: output error {point.output_error:.2g} (mean "
        f"{point.output_error_mean:.2g}), state error {point.state_error:.2g}, "
        f"{point.flips} flips, writes {rates[0]:.2%} -> {rates[1]:.2%}{accuracy}"
    )
