"""One question asked of every episode, and the answers merged: here, or on a Dask cluster.

One task is one whole episode, since a memory cannot be rolled from the middle. Answers are merged
in the order of the episodes and never in that of arrival, so a cluster gives what one process
gives, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stategate.calibration.cluster import Cluster, connected, in_order
from stategate.contract import Episode, EpisodeSet
from stategate.contract.episodes import EpisodeFile
from stategate.contract.errors import CalibrationError, EpisodeError

if TYPE_CHECKING:
    from stategate.models.load import LoadedModel
    from stategate.models.step import StepModel


class Mergeable(Protocol):
    """Statistics that can be put together with those of other episodes."""

    def merged(self, other: Any, /) -> Any:
        """Those of both; ``other`` comes later in the order of the episodes."""
        ...


One = TypeVar("One", bound=Mergeable)
Report = Callable[[int], None]
Work = Callable[[EpisodeFile, Report], Mapping[str, One]]
"""Rolls one episode; gives statistics by what they are of, such as a tensor's name. A cluster
pickles it, may run it more than once for an episode, and reports no steps to it."""
Question = Callable[["StepModel", Episode, Report], One]
"""Rolls a model through one episode; a cluster pickles it."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Recorded episodes, and a cluster that rolls a model through them."""

    source: str  # what every worker loads, see `load_model`
    sha256: str  # digest of the weights that it must have
    episodes: EpisodeSet  # found by the workers under the same paths
    cluster: Cluster  # where they are rolled


class Progress:
    """Adds up steps over rounds; it is called with those done in the present round."""

    def __init__(self, report: Report) -> None:
        self._report, self._before, self._now = report, 0, 0

    def __call__(self, done: int) -> None:
        """So many steps of this round are done."""
        self._now = done
        self._report(self._before + done)

    def next(self) -> None:
        """A round is over."""
        self._before, self._now = self._before + self._now, 0


def roll_out(
    episodes: EpisodeSet,
    work: Work[One],
    cluster: Cluster | None = None,
    report: Report = lambda _: None,
) -> dict[str, One]:
    """Statistics of all recorded episodes together, by name.

    Args:
        episodes: A cluster's workers find them under the same paths.
        work: Rolls one of them.
        cluster: None for this process.
        report: Called with the number of steps done.
    """
    if cluster is None:
        count = Progress(report)
        return _merged(((file.steps, work(file, count)) for file in episodes.files), count)
    with connected(cluster) as client:
        return _merged(_gathered(client, episodes, work), Progress(report))


def ask_each(
    model: StepModel, episodes: Iterable[Episode] | Fleet, question: Question[One], report: Report
) -> One:
    """The answers of all episodes, merged in their order."""
    if isinstance(episodes, Fleet):
        work = partial(_on_a_worker, episodes.source, episodes.sha256, question)
        return roll_out(episodes.episodes, work, episodes.cluster, report)[""]
    count = Progress(report)
    answers = _merged(((e.steps, {"": question(model, e, count)}) for e in episodes), count)
    if not answers:
        raise EpisodeError("there are no episodes", expected="at least one")
    return answers[""]


def _merged(results: Iterable[tuple[int, Mapping[str, One]]], count: Progress) -> dict[str, One]:
    total: dict[str, One] = {}
    for steps, result in results:
        for name, one in result.items():
            total[name] = total[name].merged(one) if name in total else one
        count(steps)
        count.next()
    return total


def _gathered(
    client: Any, episodes: EpisodeSet, work: Work[One]
) -> Iterator[tuple[int, Mapping[str, One]]]:
    files = [replace(file, path=file.path.resolve()) for file in episodes.files]
    ask = partial(_rolled, work)
    for file, result in in_order(client, files, ask, lambda file: f"roll {file.name}"):
        yield file.steps, result


def _rolled(work: Work[One], file: EpisodeFile) -> Mapping[str, One]:
    return work(file, lambda _: None)  # nobody is shown the steps of a worker


def _on_a_worker(
    source: str, sha256: str, question: Question[One], file: EpisodeFile, report: Report
) -> dict[str, One]:
    return {"": question(_loaded(source, sha256).model, file.load(), report)}


@lru_cache(maxsize=1)
def _loaded(source: str, sha256: str) -> LoadedModel:
    """Once a worker, not once an episode; anew where the file has other weights meanwhile."""
    from stategate.models.load import load_model
    from stategate.models.weights import weights_sha256

    loaded = load_model(source)
    loaded.module.eval()
    digest = weights_sha256(loaded.module)
    if digest != sha256:
        raise CalibrationError(
            f"a worker makes another model of {source}",
            found=f"weights {digest[:12]}",
            expected=f"weights {sha256[:12]}",
            remedy="give all workers the same file; have its factory load weights or set a seed",
        )
    return loaded
