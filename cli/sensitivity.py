"""``stategate model sensitivity``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stategate.cli.options import (
    FILE,
    FOLDER,
    POSITIVE,
    SHARE,
    input_options,
    option,
    out_option,
    precision_option,
    ranges_option,
    verb,
)
from stategate.cli.show import show
from stategate.contract import canonical_json
from stategate.contract.durable import write_whole
from stategate.models.source import model_argument

if TYPE_CHECKING:
    from stategate.export.sensitivity import Proposal


@verb()
@model_argument
@input_options
@precision_option(
    "int8-weights", "Preset or plan to begin with; what it keeps in float is not tried."
)
@ranges_option
@option(
    "--max-output-error",
    type=POSITIVE,
    default=0.05,
    help="Largest error of an output, relative to its size.",
)
@option(
    "--max-flip-rate", type=SHARE, default=0.001, help="Share of gate decisions that may differ."
)
@option(
    "--cache",
    type=FOLDER,
    help="Folder of trials that were made before; next to the plan if left out.",
)
@out_option("The plan (.json).", FILE)
def sensitivity(model: str, cache: Path | None, out: Path, **options: Any) -> None:
    """Propose a precision plan for MODEL, a zoo name or path/to/module.py:factory.

    Steps the model with one group of weights at a time in fewer bits, in closed loop, and puts
    groups back until what is left keeps both limits.

    \b
    Examples:
      stategate model sensitivity aura-hard --precision int4-weights --out build/plan.json
      stategate export aura-hard --precision build/plan.json --out build/small
    """
    from stategate.export.sensitivity import propose

    proposal = propose(model, cache or out.with_name(f"{out.stem}-trials"), **options)
    write_whole(out, canonical_json(proposal.plan))
    show(proposal, _lines(proposal, out))


def _lines(proposal: Proposal, out: Path) -> Iterator[str]:
    final = proposal.together[-1]
    width = max(len(trial.groups[0]) for trial in proposal.alone)
    for trial in proposal.alone:
        mark = "" if trial.groups[0] in final.groups else "  <- kept in float"
        yield (
            f"{trial.groups[0]:<{width}}  {trial.elements:>9,} weights, alone: output error "
            f"{trial.output_error:.3g}, {trial.flip_rate:.3%} of decisions flipped{mark}"
        )
    weights = sum(trial.elements for trial in proposal.alone)
    yield (
        f"together: {final.elements:,} of {weights:,} weights, output error "
        f"{final.output_error:.3g}, {final.flip_rate:.3%} of decisions flipped: {out}"
    )
