"""Work on a Dask cluster: answers in the order in which they were asked for, each exactly once.

Dask runs the task of a lost worker again elsewhere; as its answer is taken by whoever asked, once,
a lost worker loses nothing and doubles nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from stategate.contract.errors import CalibrationError, MissingDependencyError, StategateError
from stategate.contract.failures import failures

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
_AHEAD = 4  # tasks a thread: enough that none waits, and what waits to be taken stays bounded

Cluster: TypeAlias = "str | Client"
"""``local`` for a process a core of this machine, a scheduler's address, or an open client."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_order(
    client: Client,
    items: Iterable[Item],
    work: Callable[[Item], Answer],
    doing: Callable[[Item], str],
) -> Iterator[tuple[Item, Answer]]:
    """Each item and its answer, a bounded number of tasks ahead of the one that is due.

    ``doing`` says in words at what the cluster gave up.
    """
    ahead = _AHEAD * max(1, sum(client.nthreads().values()))
    rest, due = deque(items), deque[tuple[Item, object]]()
    while rest or due:
        while rest and len(due) < ahead:
            item = rest.popleft()
            # Not pure: Dask must not take two tasks of equal arguments for one.
            due.append((item, client.submit(work, item, pure=False)))
        item, future = due.popleft()
        try:
            yield item, future.result()  # type: ignore[attr-defined]
        except StategateError:
            raise
        except failures() as problem:  # whatever the work raised, or Dask's own
            raise CalibrationError(
                f"the cluster could not {doing(item)}",
                found=f"{type(problem).__name__}: {problem}",
                remedy="do it in one process to see the error where it happens",
            ) from problem


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
