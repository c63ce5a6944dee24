"""Closed-loop roll-outs over many episodes, in this process or on a Dask cluster.

One task is one whole episode, since a memory cannot be rolled from the middle. Statistics of tasks
are merged here in the order of names, never in that of arrival, so a cluster gives what one process
gives, to the last bit. Dask runs the task of a lost worker again elsewhere; as a task's result is
merged by whoever asked for it, once, a lost worker loses no episode and doubles none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from stategate.contract import EpisodeFile, EpisodeSet
from stategate.contract.errors import CalibrationError, MissingDependencyError, StategateError
from stategate.contract.failures import failures

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
_AHEAD = 4  # tasks a thread: enough that none waits, and what waits to be merged stays bounded


class Mergeable(Protocol):
    """Statistics that can be put together with those of other episodes."""

    def merged(self, other: Any, /) -> Any:
        """Those of both, of the same kind; ``other`` comes later in the order of names."""
        ...


Cluster: TypeAlias = "str | Client"
"""``local``, the address of a scheduler, or an open client."""

One = TypeVar("One", bound=Mergeable)
Report = Callable[[int], None]
Work = Callable[[EpisodeFile, Report], Mapping[str, One]]
"""Rolls one episode; gives statistics by what they are of, such as a tensor's name. Told whom to
report steps to, which on a cluster is nobody."""


def roll_out(
    episodes: EpisodeSet,
    work: Work[One],
    cluster: Cluster | None = None,
    report: Report = lambda _: None,
) -> dict[str, One]:
    """Statistics of all episodes together.

    Args:
        episodes: Where a cluster works, its workers find them under the same paths.
        work: For a cluster it and its result are pickled; it may run more than once for an
            episode, of which one result counts.
        cluster: None for this process; ``local`` for a process a core of this machine; the address
            of a scheduler, such as ``tcp://10.0.0.7:8786``; or an open client.
        report: Called with the number of steps done.

    Returns:
        By name what the episodes gave, merged in the order of the episodes' names.

    Raises:
        EpisodeError: An episode cannot be read.
        CalibrationError: The cluster cannot be reached, or gave up on an episode.
        MissingDependencyError: A cluster is asked for, and Dask is not installed.
    """
    if cluster is None:
        return _merged(episodes, _in_turn(episodes, work, report), report)
    with connected(cluster) as client:
        return _merged(episodes, _gathered(client, episodes, work), report)


def _merged(
    episodes: EpisodeSet, results: Iterator[Mapping[str, One]], report: Report
) -> dict[str, One]:
    total: dict[str, One] = {}
    done = 0
    for file, result in zip(episodes.files, results, strict=True):
        for name, one in result.items():
            total[name] = total[name].merged(one) if name in total else one
        done += file.steps
        report(done)
    return total


def _in_turn(episodes: EpisodeSet, work: Work[One], report: Report) -> Iterator[Mapping[str, One]]:
    before = 0
    for file in episodes.files:
        yield work(file, later(report, before))
        before += file.steps


def later(report: Report, before: int) -> Report:
    """Reports steps that come after so many others."""
    return lambda steps: report(before + steps)


def _gathered(client: Client, episodes: EpisodeSet, work: Work[One]) -> Iterator[Mapping[str, One]]:
    """Results in the order of names, a bounded number of tasks ahead of the one that is due."""
    threads = sum(client.nthreads().values())
    rest = deque(episodes.files)
    due: deque[tuple[EpisodeFile, Any]] = deque()
    while rest or due:
        while rest and len(due) < _AHEAD * max(1, threads):
            file = rest.popleft()
            there = replace(file, path=file.path.resolve())
            due.append((file, client.submit(_unheard, work, there, pure=False)))
        file, future = due.popleft()
        try:
            yield future.result()
        except StategateError:
            raise
        except failures() as problem:  # whatever the work raised, or Dask's own
            raise CalibrationError(
                f"the cluster could not roll {file.name}",
                found=f"{type(problem).__name__}: {problem}",
                remedy="roll it in one process to see the error where it happens",
            ) from problem


def _unheard(work: Work[One], file: EpisodeFile) -> Mapping[str, One]:
    return work(file, lambda _: None)


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster that is meant; one that was handed in stays open.

    Raises:
        CalibrationError: The cluster cannot be reached.
        MissingDependencyError: Dask is not installed.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as missing:
        raise MissingDependencyError("distributed", "cluster") from missing
    if not isinstance(cluster, str):
        yield cluster
    elif cluster == LOCAL:
        with (
            LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as own,
            Client(own) as client,
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
