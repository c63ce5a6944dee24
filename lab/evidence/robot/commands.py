"""``python -m lab robot``: robots that have to remember, driven by deployed bundles."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import click
import torch

from lab.evidence.records import digest_of, read_rows
from lab.evidence.robot import checkpoint as robot_checkpoint
from lab.evidence.robot.cells import BODIES, HOLDS, RECIPES, cells
from lab.evidence.robot.checkpoint import Card
from lab.evidence.robot.env import HeldRobot
from lab.evidence.robot.page import draw, on_page
from lab.evidence.robot.policies import POLICIES, build
from lab.evidence.robot.rows import Row, Table
from lab.evidence.robot.run import PROTOCOL, Exporter, drive
from lab.evidence.robot.train import Recipe, clone, demonstrate
from stategate.common.console import progress
from stategate.common.ending import CommandGroup
from stategate.contract.durable import check_writable, write_whole

_TASK, _POLICY = click.Choice(list(BODIES)), click.Choice(POLICIES)
RESULTS = Path("docs/evidence/robot.json")


@click.group(cls=CommandGroup)
def main() -> None:
    """Robots that have to remember, driven by deployed bundles."""


@main.command()
@click.argument("task", type=_TASK)
@click.argument("policy", type=_POLICY)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of it all.")
@click.option("--iterations", type=click.IntRange(min=1), help="Fewer, for a trial.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=robot_checkpoint.FOLDER,
    help="Folder of the checkpoint.  [default: lab/evidence/robot/checkpoints]",
)
def train(task: str, policy: str, seed: int, iterations: int | None, out: Path) -> None:
    """Clone TASK's expert into POLICY, and write weights and card."""
    recipe = replace(RECIPES[task, policy], seed=seed)
    _make(replace(recipe, iterations=iterations or recipe.iterations), out)


def _make(recipe: Recipe, folder: Path) -> None:
    """Train a policy and write its checkpoint."""
    with progress(recipe.demos, f"{recipe.task}: demonstrations") as report:
        demos = demonstrate(HeldRobot(BODIES[recipe.task]()), recipe.demos, report)
    with progress(recipe.iterations, f"{recipe.task}: training {recipe.policy}") as report:
        module, error = clone(recipe, demos, report)
    command = f"python -m lab robot train {recipe.task} {recipe.policy} --seed {recipe.seed}"
    command += f" --iterations {recipe.iterations}"
    card = Card(command, recipe, error, demos.reached, str(torch.__version__))
    path = robot_checkpoint.path_of(recipe, folder)
    robot_checkpoint.save(path, module, card)
    click.echo(f"error {error:.4f}, written: {path}")


@main.command()
@click.option("--task", "tasks", type=_TASK, multiple=True, help="Some tasks only.")
@click.option("--policy", "policies", type=_POLICY, multiple=True, help="Some policies only.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0,),
    show_default=True,
    help="Of trainings; repeat.",
)
@click.option(
    "--hold",
    "holds",
    type=click.IntRange(min=0),
    multiple=True,
    default=HOLDS,
    show_default=True,
    help="Idle steps; repeat.",
)
@click.option(
    "--episodes", type=click.IntRange(min=1), default=40, show_default=True, help="Of a cell."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="Rows; those that are there and still hold are kept.",
)
@click.option(
    "--checkpoints",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=robot_checkpoint.FOLDER,
    help="Folder of the trained policies.  [default: lab/evidence/robot/checkpoints]",
)
def run(
    tasks: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: tuple[int, ...],
    holds: tuple[int, ...],
    episodes: int,
    out: Path,
    checkpoints: Path,
) -> None:
    """Export every form of every policy, let it drive, and write a row for each cell.

    A policy without a checkpoint is trained first. Can be stopped at any time: a later run goes on
    with the cells that have no row.
    """
    check_writable(out)
    table = Table(out)
    for task in tasks or BODIES:
        env = HeldRobot(BODIES[task]())
        observations = demonstrate(env, 4).x.transpose(0, 1).flatten(0, 1).numpy()
        for policy, seed in product(policies or POLICIES, seeds):
            recipe = replace(RECIPES[task, policy], seed=seed)
            weights = robot_checkpoint.path_of(recipe, checkpoints)
            if not weights.exists():
                _make(recipe, checkpoints)
            module = build(policy, observations.shape[1], env.body.actions)[0]
            card = robot_checkpoint.load(weights, module)
            exporter = Exporter(policy, module, env.body.actions, observations)
            key = digest_of(card.sha256, episodes, PROTOCOL)
            todo = [c for c in cells(task, policy, seed, holds) if not table.has(c, key)]
            with progress(len(todo), f"{task} {policy} {seed}") as report:
                done = 0
                for _, same in groupby(todo, lambda cell: (cell.threshold, cell.precision)):
                    alike = list(same)
                    with tempfile.TemporaryDirectory() as scratch:
                        bundle = exporter.bundle(alike[0], Path(scratch) / "bundle")
                        for cell in alike:
                            table.add(drive(env, bundle, cell, episodes, key))
                            done += 1
                            report(done)


@main.command()
@click.option(
    "--rows",
    "rows_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="What `run` wrote.",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("docs/evidence/robots.md"),
    show_default=True,
    help="Its tables are replaced; pictures go to images/ beside it.",
)
def page(rows_path: Path, page: Path) -> None:
    """Remake the page's tables and pictures from the rows."""
    rows = read_rows(rows_path, Row)
    write_whole(page, on_page(page.read_text(), rows).encode())
    for task in {row.cell.task for row in rows}:
        draw(task, rows, page.parents[1] / "images" / f"robot-{task}.svg")
    click.echo(f"written: {page}, from {len(rows)} rows")


if __name__ == "__main__":
    main()
