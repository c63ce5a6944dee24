"""One question asked of a model over every episode: in this process, or by a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

from stategate.calibration.cluster import Cluster, One, Report, later, roll_out
from stategate.contract import Episode, EpisodeFile, EpisodeSet
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.models.load import LoadedModel, load_model
from stategate.models.step import StepModel
from stategate.models.weights import weights_sha256

Question = Callable[[StepModel, Episode, Report], One]
"""Rolls a model through one episode. For a cluster it is pickled."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Recorded episodes, and a cluster that rolls a model through them.

    Attributes:
        source: What every worker loads, see `load_model`.
        sha256: Digest of the weights that it must have.
        episodes: Found by the workers under the same paths.
        cluster: See `roll_out`.
    """

    source: str
    sha256: str
    episodes: EpisodeSet
    cluster: Cluster


def over(
    model: StepModel, episodes: Iterable[Episode] | Fleet, question: Question[One], report: Report
) -> One:
    """The answers of all episodes, merged in their order.

    Args:
        model: The model, where it is rolled here.
        episodes: What it is rolled through.
        question: Asked of each.
        report: Called with the number of steps done.

    Raises:
        EpisodeError: There are none.
        CalibrationError: A worker loads other weights, or the cluster fails.
    """
    if isinstance(episodes, Fleet):
        work = partial(_there, episodes.source, episodes.sha256, question)
        return roll_out(episodes.episodes, work, episodes.cluster, report)[""]
    total: One | None = None
    done = 0
    for episode in episodes:
        one = question(model, episode, later(report, done))
        total = one if total is None else total.merged(one)
        done += episode.steps
    if total is None:
        raise EpisodeError("there are no episodes", expected="at least one")
    return total


def _there(
    source: str, sha256: str, question: Question[One], file: EpisodeFile, report: Report
) -> dict[str, One]:
    return {"": question(_loaded(source, sha256).model, file.load(), report)}


@lru_cache(maxsize=1)
def _loaded(source: str, sha256: str) -> LoadedModel:
    """Once a worker, not once an episode; anew where the file has other weights meanwhile."""
    loaded = load_model(source)
    found = weights_sha256(loaded.module)
    if found != sha256:
        raise CalibrationError(
            f"a worker makes another model of {source}",
            found=f"weights {found[:12]}",
            expected=f"weights {sha256[:12]}",
            remedy="give all workers the same file; have its factory load weights or set a seed",
        )
    return loaded
