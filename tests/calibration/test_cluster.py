"""Roll-outs on a cluster give what one process gives, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cloudpickle
import distributed
import numpy as np
import pytest

from stategate.calibration.episodes import roll_out
from stategate.contract import Episode, EpisodeSet
from stategate.contract.episodes import EpisodeFile
from stategate.contract.errors import CalibrationError, EpisodeError, MissingDependencyError

# A library that makes its own threads and loops closes them in its own time.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")
# Workers cannot import the tests; what these define travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass
class Moments:
    """Count, range, and the two moments by the formula of Chan, Golub and LeVeque (1979)."""

    names: list[str]
    count: int
    low: float
    high: float
    mean: float
    m2: float

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> Moments:
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        spread = float(((exact - mean) ** 2).sum())
        return cls([name], exact.size, float(exact.min()), float(exact.max()), mean, spread)

    def merged(self, other: Moments) -> Moments:
        total = self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            self.names + other.names,
            total,
            min(self.low, other.low),
            max(self.high, other.high),
            self.mean + apart * other.count / total,
            self.m2 + other.m2 + apart**2 * self.count * other.count / total,
        )


def roll(
    file: EpisodeFile, report: object, marks: Path | None = None, pause_s: float = 0.0
) -> dict[str, Moments]:
    """A leaky memory over one episode, in blocks."""
    if marks is not None:
        (marks / f"{file.name}.{os.getpid()}.{time.time_ns()}").touch()
    time.sleep(pause_s)
    seen, state = [], np.zeros((1, 3), np.float32)
    for block in file.blocks(16):
        for inputs in block:
            state = np.tanh(0.9 * state + inputs["x"])
            seen.append(state)
    return {"state": Moments.of(file.name, np.concatenate(seen))}


def failing(file: EpisodeFile, report: object) -> dict[str, Moments]:
    raise EpisodeError("no good", found=file.name)


def surprising(file: EpisodeFile, report: object) -> dict[str, Moments]:
    raise ZeroDivisionError(file.name)


@pytest.fixture
def episodes(tmp_path: Path) -> EpisodeSet:
    rng = np.random.default_rng(3)
    folder = tmp_path / "episodes"
    folder.mkdir()
    for i in range(12):
        x = rng.normal(i, 1 + i, (20 + 7 * (i % 5), 1, 3)).astype(np.float32)
        (folder / f"{i:03d}.npz").write_bytes(Episode({"x": x}).to_bytes())
    return EpisodeSet.open(folder)


@pytest.fixture(scope="module")
def threads() -> Iterator[object]:
    """A cluster inside this process."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_cluster_gives_what_one_process_gives_to_the_last_bit(
    episodes: EpisodeSet, threads: object
) -> None:
    done: list[int] = []
    alone = roll_out(episodes, roll)
    together = roll_out(episodes, roll, threads, done.append)  # type: ignore[arg-type]
    assert together == alone
    assert together["state"].count == 3 * episodes.steps
    assert together["state"].names == list(episodes.names)
    assert done[-1] == episodes.steps


def test_merged_moments_are_those_of_all_values_at_once(episodes: EpisodeSet) -> None:
    values = []
    for _, episode in episodes:
        state = np.zeros((1, 3), np.float32)
        for inputs in episode:
            state = np.tanh(0.9 * state + inputs["x"])
            values.append(state)
    every = np.concatenate(values).astype(np.float64)
    merged = roll_out(episodes, roll)["state"]
    assert (merged.count, merged.low, merged.high) == (every.size, every.min(), every.max())
    assert merged.mean == pytest.approx(every.mean(), rel=1e-9)
    assert merged.m2 / merged.count == pytest.approx(every.var(), rel=1e-6)


@pytest.mark.slow
def test_a_lost_worker_loses_no_episode_and_doubles_none(
    episodes: EpisodeSet, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    killed: list[int] = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = set(client.run(os.getpid).values())

        def kill() -> None:
            while len(list(marks.iterdir())) < 5:
                time.sleep(0.02)
            last = max(marks.iterdir(), key=lambda mark: int(mark.name.split(".")[-1]))
            killed.append(int(last.name.split(".")[-2]))
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        together = roll_out(episodes, partial(roll, marks=marks, pause_s=0.15), client)
        killer.join()
    assert killed[0] in pids
    begun = [mark.name.split(".")[0] for mark in marks.iterdir()]
    assert len(begun) > len(set(begun)) == len(episodes)  # something ran twice
    # A class that travelled by value is another class; what is in it is the same.
    assert vars(together["state"]) == vars(roll_out(episodes, roll)["state"])


def test_errors_come_back_as_what_they_are(episodes: EpisodeSet, threads: object) -> None:
    with pytest.raises(EpisodeError, match=r"000\.npz"):
        roll_out(episodes, failing, threads)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=r"could not roll 000\.npz(.|\n)*ZeroDivision"):
        roll_out(episodes, surprising, threads)  # type: ignore[arg-type]


def test_a_cluster_that_is_not_there_is_said_so(
    episodes: EpisodeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CalibrationError, match="cannot be reached"):
        roll_out(episodes, roll, "nonsense://nowhere")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"stategate\[cluster\]"):
        roll_out(episodes, roll, "local")
