"""``stategate drift``: does a candidate still do what its float model does, after many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import stategate
from stategate.calibration.drift.record import DriftLimits, DriftReport, Point
from stategate.cli.options import (
    ANY_PATH,
    EXISTING,
    FOLDER,
    PRICE,
    Verb,
    accept_option,
    command_with,
    episode_option,
    option,
    out_option,
    steps_option,
    verb,
)
from stategate.cli.show import leave_unless, show


def _limit(name: str, field: str, text: str) -> Callable[[Verb], Verb]:
    return option(name, field, type=PRICE, default=getattr(DriftLimits(), field), help=text)


@verb()
@click.argument("reference", metavar="FLOAT", type=EXISTING)
@click.argument("candidate", type=EXISTING)
@episode_option(
    "",
    required=True,
    help="Held-out inputs: one .npz, or a folder of them; labels in them are judged.",
)
@steps_option(
    "Steps of each episode, repeated if short; default: its own.",
    None,
    click.IntRange(1, 100_000_000),
)
@out_option("Folder for drift.json and drift.html.", FOLDER)
@_limit(
    "--max-output-error",
    "output_error",
    "Largest output error, in units of the largest output; not judged if left out.",
)
@_limit("--max-mean-error", "mean_error", "Mean over the steps of the largest output error.")
@_limit("--max-flip-rate", "flip_rate", "Share of gate decisions that may differ.")
@_limit("--max-write-change", "write_change", "Difference of the write rates.")
@_limit(
    "--max-norm-growth", "norm_growth", "Largest norm of a state, in units of the float model's."
)
@_limit(
    "--max-accuracy-loss", "accuracy_loss", "Accuracy that may be lost, where there are labels."
)
@_limit(
    "--diverged-above",
    "diverged_above",
    "Output error of the first diverging step that is reported.",
)
@option(
    "--seal",
    "sealed",
    type=ANY_PATH,
    help="Write the candidate as a sealed bundle there, if it passes or is accepted.",
)
@accept_option
def drift(
    reference: Path,
    candidate: Path,
    episode: Path,
    out: Path,
    sealed: Path | None,
    accept: str | None,
    **options: Any,
) -> None:
    """Step FLOAT and CANDIDATE through the same episodes, each on its own state.

    Writes drift.json, and drift.html with plots. Exits with 1 where a limit is broken or the
    candidate fails; with --accept only where it fails.

    \b
    Example:
      stategate drift build/aura build/aura-int8 --episode held-out.npz --out build/drift \\
          --seal build/small
    """
    limits = DriftLimits(**{name: options.pop(name) for name in DriftLimits.__struct_fields__})
    result = stategate.compare(
        reference,
        candidate,
        episode,
        limits=limits,
        out=out,
        sealed=sealed,
        accept=accept,
        swapped=command_with(candidate, reference),
        **options,
    )
    show(result, _lines(result, out))
    seals = sealed is not None and result.may_be_sealed(accept)
    if seals:
        acceptance = f", accepted by {accept}" if result.findings else ""
        click.echo(f"sealed: {sealed}{acceptance}", err=True)
    elif sealed is not None:
        click.echo(f"not sealed: {sealed}", err=True)
    leave_unless(result.passed or seals)


def _lines(result: DriftReport, out: Path) -> Iterator[str]:
    yield (
        f"{result.candidate.model}: {result.candidate.state_bytes:,} bytes of state beside "
        f"{result.reference.state_bytes:,}, {len(result.episodes)} episode(s)"
    )
    yield from map(_line, result.milestones)
    for name, (reference, candidate) in result.total.norms.items():
        yield f"largest norm of state {name}: {reference:.5g} -> {candidate:.5g}"
    for what, first in (
        ("decision that differs", result.first_flip),
        (f"output error above {result.limits.diverged_above:g}", result.first_divergence),
    ):
        yield f"first {what}: " + (f"step {first[0]:,} of {first[1]}" if first else "none")
    if result.warm_up is not None:
        yield result.warm_up.words
    for name, reason in result.not_compared.items():
        yield f"not compared: {name}: {reason}"
    yield from (f"beyond: {finding}" for finding in result.findings)
    yield f"{'passed' if result.passed else 'FAILED'}: {out / 'drift.html'}"


def _line(point: Point) -> str:
    rates, accuracies = point.write_rates, point.accuracies
    accuracy = f", right {accuracies[0]:.2%} -> {accuracies[1]:.2%}" if accuracies else ""
    return (
        f"{point.step:>9,} steps: output error {point.output_error:.2g} (mean "
        f"{point.output_error_mean:.2g}), state error {point.state_error:.2g}, "
        f"{point.flips} flips, writes {rates[0]:.2%} -> {rates[1]:.2%}{accuracy}"
    )
