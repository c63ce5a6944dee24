"""Closed-loop roll-outs over many episodes, in this process or on a Dask cluster.

One task is one whole episode, since a memory cannot be rolled from the middle. Statistics of tasks
are merged here in the order of names, never in that of arrival, so a cluster gives what one process
gives, to the last bit. Dask runs the task of a lost worker again elsewhere; as a task's result is
merged by whoever asked for it, once, a lost worker loses no episode and doubles none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stategate.contract import EpisodeFile, EpisodeSet
from stategate.contract.errors import CalibrationError, MissingDependencyError, StategateError

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
_AHEAD = 4  # tasks a thread: enough that none waits, and what waits to be merged stays bounded


class Mergeable(Protocol):
    """Statistics of some episodes that can take in those of others."""

    def merge(self, other: Any, /) -> object:
        """Add ``other``, which is of the same kind, into this one."""
        ...


Statistics = TypeVar("Statistics", bound=Mergeable)


def roll_out(
    episodes: EpisodeSet,
    work: Callable[[EpisodeFile], Statistics],
    cluster: str | Client | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Statistics of all episodes together.

    Args:
        episodes: Where a cluster works, its workers find them under the same paths.
        work: Rolls one episode and gives its statistics. For a cluster it and its result are
            pickled; it may run more than once for an episode, of which one result counts.
        cluster: None for this process; ``local`` for a process a core of this machine; the address
            of a scheduler, such as ``tcp://10.0.0.7:8786``; or an open client.
        report: Called with the number of steps done.

    Returns:
        The first episode's statistics, with those of the others merged in, in the order of names.

    Raises:
        EpisodeError: An episode cannot be read.
        CalibrationError: The cluster cannot be reached, or gave up on an episode.
        MissingDependencyError: A cluster is asked for, and Dask is not installed.
    """
    if cluster is None:
        return _merged(episodes, (work(file) for file in episodes.files), report)
    with _client(cluster) as client:
        return _merged(episodes, _gathered(client, episodes, work), report)


def _merged(
    episodes: EpisodeSet, results: Iterator[Statistics], report: Callable[[int], None]
) -> Statistics:
    total: Statistics | None = None
    done = 0
    for file, result in zip(episodes.files, results, strict=True):
        if total is None:
            total = result
        else:
            total.merge(result)
        done += file.steps
        report(done)
    if total is None:  # an EpisodeSet made by hand
        raise CalibrationError("there are no episodes to roll through")
    return total


def _gathered(
    client: Client, episodes: EpisodeSet, work: Callable[[EpisodeFile], Statistics]
) -> Iterator[Statistics]:
    """Results in the order of names, a bounded number of tasks ahead of the one that is due."""
    threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
    rest = deque(episodes.files)
    due: deque[tuple[EpisodeFile, Any]] = deque()
    while rest or due:
        while rest and len(due) < _AHEAD * max(1, threads):
            file = rest.popleft()
            due.append((file, client.submit(work, file, pure=False)))
        file, future = due.popleft()
        try:
            yield future.result()
        except StategateError:
            raise
        except Exception as problem:  # whatever the work raised, or Dask's own
            raise CalibrationError(
                f"the cluster could not roll {file.name}",
                found=f"{type(problem).__name__}: {problem}",
                remedy="roll it in one process to see the error where it happens",
            ) from problem


@contextmanager
def _client(cluster: str | Client) -> Iterator[Client]:
    """A client of the cluster that is meant; one that was handed in stays open."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as missing:
        raise MissingDependencyError("distributed", "cluster") from missing
    if not isinstance(cluster, str):
        yield cluster
    elif cluster == LOCAL:
        with (
            LocalCluster(threads_per_worker=1, dashboard_address="127.0.0.1:0") as own,  # type: ignore[no-untyped-call]
            Client(own) as client,  # type: ignore[no-untyped-call]
        ):
            yield client
    else:
        try:
            client = Client(cluster, timeout="10s")  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as problem:
            raise CalibrationError(
                "the cluster cannot be reached",
                found=f"{cluster}: {problem}",
                expected=f"{LOCAL}, or the address of a Dask scheduler",
            ) from problem
        with client:
            yield client
