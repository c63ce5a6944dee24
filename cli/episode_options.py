"""Options that several of calibration's commands have, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stategate.calibration.episodes import LOCAL
from stategate.contract import Episode, EpisodeSet

if TYPE_CHECKING:
    from stategate.models.load import LoadedModel

_CALIBRATION_SEED = 3_000_017  # neither the training's nor the held-out episode's

Command = Callable[..., Any]
Option = Callable[[Command], Command]

BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)

cluster_option = click.option(
    "--cluster",
    metavar="ADDRESS",
    help=f"Roll the episodes on a Dask cluster, which finds the files under the same paths: "
    f"{LOCAL} for the cores of this machine, or a scheduler such as tcp://10.0.0.7:8786.",
)
gate_option = click.option("--gate", "gate_name", help="Which hard gate, where there are several.")


def episodes_option(text: str, *, required: bool = False) -> Option:
    """``--episode``, files and folders, as often as one likes."""
    return click.option(
        "--episode",
        "episode_paths",
        multiple=True,
        required=required,
        type=click.Path(exists=True, path_type=Path),
        help=f"{text} (.npz, or a folder of them); repeat for more."
        + ("" if required else " For a zoo model its own benchmark, if left out."),
    )


def zoo_options(least: int) -> Option:
    """``--steps`` and ``--episodes`` of a zoo model's own benchmark."""

    def add(command: Command) -> Command:
        count = click.option(
            "--episodes",
            "count",
            type=click.IntRange(min=least),
            default=4,
            show_default=True,
            help="How many, for the zoo.",
        )
        steps = click.option(
            "--steps",
            type=click.IntRange(min=1),
            default=2048,
            show_default=True,
            help="Of each episode, for the zoo.",
        )
        return steps(count(command))

    return add


def record_options(command: Command) -> Command:
    """``--out`` and ``--json`` of a command that writes a record."""
    out = click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        required=True,
        help="The record (.json).",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
    return out(as_json(command))


def told(paths: tuple[Path, ...]) -> str:
    """What a record calls its episodes."""
    return ", ".join(path.name for path in paths)


def episodes_for(
    loaded: LoadedModel, paths: tuple[Path, ...], steps: int, count: int
) -> tuple[Iterable[Episode], int, str]:
    """The episodes that a command names, their steps in all, and what a record calls them.

    Raises:
        UsageError: A model of the user's own, and no files.
        EpisodeError: A folder has no episodes, or they differ in form.
    """
    if paths:
        found = EpisodeSet.open(*paths)
        return found.loaded, found.steps, told(paths)
    if loaded.episode is None:
        raise click.UsageError("a model of your own needs --episode FILE.npz")
    seeds = range(_CALIBRATION_SEED, _CALIBRATION_SEED + count)
    what = "the model's own benchmark" if loaded.episode(1, 0).labels else "random inputs"
    made = [loaded.episode(steps, seed) for seed in seeds]
    return made, sum(e.steps for e in made), f"{what}, {count} from seed {seeds[0]}"
