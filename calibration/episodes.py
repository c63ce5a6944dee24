"""One question asked of every episode, and the answers merged: here, or on a Dask cluster.

One task is one whole episode, since a memory cannot be rolled from the middle. Answers are merged
in the order of the episodes and never in that of arrival, so a cluster gives what one process
gives, to the last bit. Dask runs the task of a lost worker again elsewhere; as its answer is merged
by whoever asked, once, a lost worker loses no episode and doubles none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from stategate.contract import Episode, EpisodeFile, EpisodeSet
from stategate.contract.errors import (
    CalibrationError,
    EpisodeError,
    MissingDependencyError,
    StategateError,
)
from stategate.contract.failures import failures

if TYPE_CHECKING:
    from distributed import Client

    from stategate.models.load import LoadedModel
    from stategate.models.step import StepModel

LOCAL = "local"
_AHEAD = 4  # tasks a thread: enough that none waits, and what waits to be merged stays bounded


class Mergeable(Protocol):
    """Statistics that can be put together with those of other episodes."""

    def merged(self, other: Any, /) -> Any:
        """Those of both; ``other`` comes later in the order of the episodes."""
        ...


Cluster: TypeAlias = "str | Client"
"""``local`` for a process a core of this machine, a scheduler's address, or an open client."""

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

    Raises:
        EpisodeError: An episode cannot be read.
        CalibrationError: The cluster cannot be reached, or gave up on an episode.
        MissingDependencyError: A cluster is asked for, and Dask is not installed.
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
    client: Client, episodes: EpisodeSet, work: Work[One]
) -> Iterator[tuple[int, Mapping[str, One]]]:
    """Results in the order of names, a bounded number of tasks ahead of the one that is due."""
    ahead = _AHEAD * max(1, sum(client.nthreads().values()))
    rest, due = deque(episodes.files), deque[tuple[EpisodeFile, Any]]()
    while rest or due:
        while rest and len(due) < ahead:
            file = rest.popleft()
            task = partial(work, replace(file, path=file.path.resolve()), _silent)
            # Not pure: Dask must not take two tasks of equal arguments for one.
            due.append((file, client.submit(task, pure=False)))
        file, future = due.popleft()
        try:
            yield file.steps, future.result()
        except StategateError:
            raise
        except failures() as problem:  # whatever the work raised, or Dask's own
            raise CalibrationError(
                f"the cluster could not roll {file.name}",
                found=f"{type(problem).__name__}: {problem}",
                remedy="roll it in one process to see the error where it happens",
            ) from problem


def _silent(_: int) -> None:
    """Nobody is shown the steps of a worker."""


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


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster; one that was handed in stays open."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as missing:
        raise MissingDependencyError("distributed", "cluster") from missing
    if not isinstance(cluster, str):
        yield cluster
    elif cluster == LOCAL:
        with (
            LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as workers,
            Client(workers) as client,
        ):
            yield client
    else:
        try:
            client = Client(cluster, timeout="10s")
        except (OSError, ValueError) as problem:
            raise CalibrationError(
                "the cluster cannot be reached",
                found=f"{cluster}: {problem}",
                expected=f"{LOCAL}, or the address of a Dask scheduler",
            ) from problem
        with client:
            yield client
