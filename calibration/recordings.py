"""What is calibrated on: recordings, episodes of a program, or a zoo model's own benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from stategate.contract import Episode, EpisodeSet
from stategate.contract.errors import EpisodeError
from stategate.contract.staging import scratch_folder

if TYPE_CHECKING:
    from stategate.models.load import LoadedModel

CALIBRATION_SEED = 3_000_017  # neither the training's nor the held-out episode's

Episodes: TypeAlias = "str | Path | Episode | Iterable[str | Path | Episode]"
"""A ``.npz``, a folder of them, an episode, or several of these."""


def listed(episodes: Episodes) -> list[str | Path | Episode]:
    """Them as a list, however they came."""
    several = isinstance(episodes, Iterable) and not isinstance(episodes, str | Mapping | Episode)
    # What is no recording is refused where it is opened.
    every: list[str | Path | Episode] = (
        list(cast(Iterable[Path], episodes)) if several else [cast(Path, episodes)]
    )
    for one in every:
        if isinstance(one, Episode):
            one.check_one_stream()
    return every


def names_of(episodes: Episodes) -> str:
    """What a record calls its episodes."""
    return ", ".join(
        one.provenance or "an episode in memory" if isinstance(one, Episode) else Path(one).name
        for one in listed(episodes)
    )


@contextmanager
def on_disk(episodes: Episodes) -> Iterator[EpisodeSet]:
    """Episodes as files, read a block at a time; those of a program are written for that."""
    with scratch_folder() as scratch:
        paths = []
        for i, one in enumerate(listed(episodes)):
            if isinstance(one, Episode):
                path = Path(scratch) / f"episode-{i:04}.npz"
                path.write_bytes(one.to_bytes())
                one = path
            paths.append(one)
        yield EpisodeSet.open(*paths)


def episodes_for(
    loaded: LoadedModel, episodes: Episodes | None, steps: int, count: int
) -> tuple[Iterable[Episode], int, str]:
    """The episodes to calibrate a model on, their steps in all, and what a record calls them."""
    if episodes is not None:
        several = listed(episodes)
        if any(isinstance(one, Episode) for one in several):
            parts = [[o] if isinstance(o, Episode) else EpisodeSet.open(o).loaded for o in several]
            whole = [episode for part in parts for episode in part]
            return whole, sum(episode.steps for episode in whole), names_of(several)
        files = EpisodeSet.open(*(one for one in several if not isinstance(one, Episode)))
        return files.loaded, files.steps, names_of(several)
    if loaded.episode is None:
        raise EpisodeError(
            "a model of your own needs recorded episodes",
            found=f"none for {loaded.name}",
            expected="--episode FILE.npz, or a folder of them",
        )
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + count)
    kind = "the model's own benchmark" if loaded.episode(1, 0).labels else "random inputs"
    drawn = [loaded.episode(steps, seed) for seed in seeds]
    return drawn, sum(one.steps for one in drawn), f"{kind}, {count} from seed {seeds[0]}"
