"""``python -m lab wrap-evidence``: frozen policies that get a memory, and what does not work."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import click

from lab.evidence.records import read_rows, write_rows
from stategate.contract.durable import check_writable

# Optimiser steps: 1,500 are the default of `stategate.wrap`; others are content with fewer.
_TASKS = {
    "random-backbone": 1500,
    "tmaze": 400,
    "own-actions": 800,
    "trained-backbone": 800,
    "numbers": 800,
    "slow": 800,
}


@click.command("wrap-evidence")
@click.option(
    "--task", "tasks", multiple=True, type=click.Choice(list(_TASKS)), help="Only these; repeat."
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(min=0),
    default=(0, 1, 2),
    show_default=True,
    help="Of trainings; repeat.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/evidence/wrap.json"),
    show_default=True,
    help="Rows; those that are there and still hold are kept.",
)
def wrap_evidence(tasks: tuple[str, ...], seeds: tuple[int, ...], out: Path) -> None:
    """Wrap a policy of each kind, and keep a row of each training; a later run goes on.

    One core: two minutes a training, ten for the slow streams. The T-maze needs its simulator, see
    `make evidence-wrap`.
    """
    check_writable(out)

    from lab.evidence.wrap.measure import digest, wrapped_row
    from lab.evidence.wrap.rows import Row
    from lab.evidence.wrap.tmaze import tmaze_row

    order = list(_TASKS)
    rows = {(row.task, row.seed): row for row in read_rows(out, Row)}
    for seed, task in product(seeds, tasks or _TASKS):
        iterations = _TASKS[task]
        before = rows.get((task, seed))
        if before is not None and before.digest == digest(task, seed, iterations):
            continue
        click.echo(f"{task}, training {seed}", err=True)
        make = tmaze_row if task == "tmaze" else wrapped_row
        rows[task, seed] = make(task, seed, iterations)
        write_rows(out, rows.values(), lambda row: (order.index(row.task), row.seed))
