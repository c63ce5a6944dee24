"""Trainings of the controlled benchmark, each kept in a file that a later run takes up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lab.evidence.controlled.arms import ARMS, CONFIGS, MOST_SEEDS
from lab.training.checkpoints import save
from lab.training.stream import Recipe, train
from stategate.common.console import progress
from stategate.contract.errors import SpecError
from stategate.models.zoo import checkpoint
from stategate.models.zoo.checkpoint import Card


class Training(NamedTuple):
    """One checkpoint."""

    arm: str
    config: str
    seed: int

    @property
    def recipe(self) -> Recipe:
        """Everything that decides it, but for the arm."""
        return ARMS[self.arm].recipe_for(self.config, self.seed)

    def path(self, folder: Path) -> Path:
        """Its weights, with the card beside them."""
        arm = ARMS[self.arm].weights_of or self.arm
        return folder / self.config / f"{arm}-{self.seed}.safetensors"

    def done(self, folder: Path) -> bool:
        """Whether it is there, by the recipe that is asked for now.

        Raises:
            SpecError: A file of that name cannot be read.
        """
        path = self.path(folder)
        return path.exists() and checkpoint.load(path, self.module())[2].recipe == asdict(
            self.recipe
        )

    def module(self) -> torch.nn.Module:
        """What its weights are loaded into."""
        with torch.random.fork_rng(devices=[]):
            return ARMS[self.arm].deployed()


def trainings(
    arms: Iterable[str], configs: Iterable[str], most: int = MOST_SEEDS
) -> Iterator[Training]:
    """All of the arms and configurations, in the order in which they matter.

    Hard first; within a configuration the first seed of every arm before the second of any.

    Args:
        arms: Names in `ARMS`.
        configs: Of `CONFIGS`.
        most: Seeds of each.
    """
    chosen = set(configs)
    for config in (c for c in CONFIGS if c in chosen):
        seeds = {arm: min(most, ARMS[arm].seeds.get(config, 0)) for arm in arms}
        for seed in range(max(seeds.values(), default=0)):
            yield from (Training(arm, config, seed) for arm in seeds if seed < seeds[arm])


def make(training: Training, folder: Path) -> None:
    """Train and keep it, unless that was done.

    Raises:
        CalibrationError: The training diverged.
        SpecError: An older file cannot be read.
    """
    if training.done(folder):
        return
    recipe = training.recipe
    world = recipe.world()
    label = f"{training.config} {training.arm}-{training.seed}"
    with progress(recipe.iterations, f"training {label:<24}") as report:
        module = train(ARMS[training.arm].learner, recipe, world, report)
    command = f"python -m lab controlled train --arm {training.arm} --config {training.config}"
    card = Card(command, asdict(recipe), str(torch.__version__), ())
    save(training.path(folder), module, world, card)


def trained(training: Training, folder: Path) -> tuple[torch.nn.Module, Card]:
    """The module that is deployed, with its weights.

    Raises:
        SpecError: It was not trained, or by another recipe, or in another world.
    """
    module, world, card = checkpoint.load(training.path(folder), training.module())
    drawn = asdict(training.recipe.world())
    if not all(np.array_equal(array, drawn[name]) for name, array in asdict(world).items()):
        raise SpecError(
            f"{training.path(folder)} was trained in a world that NumPy no longer draws",
            found=f"NumPy {np.__version__}",
            remedy="remove the file and train again, so that all models meet the same streams",
        )
    if card.recipe != asdict(training.recipe):
        raise SpecError(
            f"{training.path(folder)} was trained by another recipe",
            found=card.recipe,
            expected=training.recipe,
            remedy="make evidence-controlled trains it again",
        )
    return module, card
