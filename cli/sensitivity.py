"""``stategate sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stategate.cli.options import (
    input_options,
    input_ranges_of,
    json_option,
    out_option,
    ranges_option,
)
from stategate.contract import canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.precision import PrecisionPlan
from stategate.models.source import model_argument

if TYPE_CHECKING:
    from stategate.export.sensitivity import Proposal


@click.command()
@model_argument
@input_options
@click.option(
    "--precision",
    default="int8-weights",
    show_default=True,
    help="Preset or plan to begin with; what it keeps in float is not tried.",
)
@ranges_option
@click.option(
    "--max-output-error",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="Largest error of an output, relative to its size.",
)
@click.option(
    "--max-flip-rate",
    type=click.FloatRange(min=0, max=1),
    default=0.001,
    show_default=True,
    help="Share of gate decisions that may differ.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of trials that were made before; next to the plan if left out.",
)
@out_option("The plan (.json).", folder=False)
@json_option
def sensitivity(
    model: str,
    input_ranges: tuple[str, ...],
    precision: str,
    cache: Path | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Propose a precision plan for MODEL, a zoo name or path/to/module.py:factory.

    Steps the model with one group of weights at a time in fewer bits, in closed loop, and puts
    groups back until what is left keeps both limits.

    \b
    Examples:
      stategate model sensitivity aura-hard --precision int4-weights --out build/plan.json
      stategate export aura-hard --precision build/plan.json --out build/small
    """
    options |= {
        "input_ranges": input_ranges_of(input_ranges),
        "precision": PrecisionPlan.named(precision),
    }
    check_writable(out)

    from stategate.export.sensitivity import propose

    proposal = propose(model, cache or out.with_name(f"{out.stem}-trials"), **options)
    write_whole(out, canonical_json(proposal.plan))
    if as_json:
        click.echo(canonical_json(proposal), nl=False)
        return
    _print(proposal, out)


def _print(proposal: Proposal, out: Path) -> None:
    final = proposal.together[-1]
    width = max(len(trial.groups[0]) for trial in proposal.alone)
    for trial in proposal.alone:
        mark = "" if trial.groups[0] in final.groups else "  <- kept in float"
        click.echo(
            f"{trial.groups[0]:<{width}}  {trial.elements:>9,} weights, alone: output error "
            f"{trial.output_error:.3g}, {trial.flip_rate:.3%} of decisions flipped{mark}"
        )
    weights = sum(trial.elements for trial in proposal.alone)
    click.echo(
        f"together: {final.elements:,} of {weights:,} weights, output error "
        f"{final.output_error:.3g}, {final.flip_rate:.3%} of decisions flipped: {out}"
    )
