"""``stategate sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stategate.common.console import progress
from stategate.contract import canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.export.inputs import input_options, parsed_ranges
from stategate.export.seal.verify import Limits
from stategate.models.source import model_argument

if TYPE_CHECKING:
    from stategate.export.sensitivity import Proposal

_MAX_OUTPUT_ERROR = 0.05
_MAX_FLIP_RATE = 0.001


@click.command()
@model_argument
@input_options
@click.option(
    "--precision",
    default="int8-weights",
    show_default=True,
    help="Preset or plan to begin with; what it keeps in float is not tried.",
)
@click.option(
    "--ranges",
    "ranges_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Ranges of activations, from: stategate ranges.",
)
@click.option(
    "--max-output-error",
    type=click.FloatRange(min=0, min_open=True),
    default=_MAX_OUTPUT_ERROR,
    show_default=True,
    help="Largest error of an output, relative to its size.",
)
@click.option(
    "--max-flip-rate",
    type=click.FloatRange(min=0, max=1),
    default=_MAX_FLIP_RATE,
    show_default=True,
    help="Share of gate decisions that may differ.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of trials that were made before; beside the plan if left out.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The plan (.json).",
)
@click.option("--json", "as_json", is_flag=True, help="Print plan and trials as JSON.")
def sensitivity(
    model: str,
    episode_path: Path | None,
    input_ranges: tuple[str, ...],
    steps: int,
    precision: str,
    ranges_path: Path | None,
    max_output_error: float,
    max_flip_rate: float,
    cache: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Propose a precision plan for MODEL, a zoo name or path/to/module.py:factory.

    Steps the model with one group of weights at a time in fewer bits, in closed loop, and puts
    groups back until what is left keeps both limits.

    \b
    Examples:
      stategate sensitivity aura-hard --precision int4-weights --out build/plan.json
      stategate export aura-hard --precision build/plan.json --out build/small
    """
    check_writable(out)
    plan = PrecisionPlan.named(precision)

    from stategate.export.candidates import candidate_from, episode_for, reference_for
    from stategate.export.sensitivity import Search, Trial
    from stategate.models.load import load_model

    loaded = load_model(model)
    candidate = candidate_from(loaded)
    ranges = None
    if ranges_path is not None:
        ranges = RangeRecord.load(ranges_path).limits(candidate.model.sha256, plan.method)
    episode, inputs = episode_for(
        loaded, candidate, episode_path, steps, parsed_ranges(input_ranges)
    )
    cache = cache or out.with_name(f"{out.stem}-trials")
    reference = reference_for(loaded.model, candidate)
    search = Search(candidate, reference, episode, plan, ranges, cache, inputs)
    # At most so many: each group alone, then all of them, and one less each time.
    kept = f"trials are kept in {cache}; the same command goes on from there"
    with progress(2 * len(search.groups), "trying", kept) as report:
        done = 0

        def shown(trial: Trial) -> None:
            nonlocal done
            done += 1
            report(done)

        found = search.propose(Limits(max_output_error, max_flip_rate), shown)
    write_whole(out, canonical_json(found.plan))
    if as_json:
        click.echo(canonical_json(found), nl=False)
        return
    _print(found, out)


def _print(found: Proposal, out: Path) -> None:
    final = found.together[-1]
    width = max(len(trial.groups[0]) for trial in found.alone)
    for trial in found.alone:
        kept = "" if trial.groups[0] in final.groups else "  <- kept in float"
        click.echo(
            f"{trial.groups[0]:<{width}}  {trial.elements:>9,} weights, alone: output error "
            f"{trial.output_error:.3g}, {trial.flip_rate:.3%} of decisions flipped{kept}"
        )
    weights = sum(trial.elements for trial in found.alone)
    click.echo(
        f"together: {final.elements:,} of {weights:,} weights, output error "
        f"{final.output_error:.3g}, {final.flip_rate:.3%} of decisions flipped: {out}"
    )
