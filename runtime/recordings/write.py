"""What a bundle took, gave and remembered, in files that other tools open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stategate.contract import Bundle, Manifest, load_episode
from stategate.contract.durable import move_into_place
from stategate.contract.errors import EpisodeError, ResultError
from stategate.contract.staging import staged
from stategate.runtime.base.buffers import Array
from stategate.runtime.check.recording import Gap, Keyframe
from stategate.runtime.check.steps import RecordedSteps, Replayed
from stategate.runtime.recordings.source import Steps
from stategate.runtime.session import Session

_STEPS = 1024
Values = Mapping[str, Array]


class Writer(Protocol):
    """What writes blocks into a file or folder."""

    def add(self, block: Steps) -> None:
        """More steps."""
        ...

    def close(self) -> None:
        """Finish it."""
        ...


@dataclass
class Written:
    """What was written."""

    path: Path
    steps: int = 0
    episodes: int = 0


@dataclass(frozen=True)
class _Step:
    begins: bool
    time_ns: int
    values: dict[str, Array]


def write_run(
    source: str | Path,
    bundle: str | Path,
    out: str | Path,
    rate_hz: float | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> Written:
    """Step a bundle through a black box or an episode, and write what came of it.

    Args:
        source: A black box, or an episode or a folder of them.
        bundle: That was recorded, or that takes the episode.
        out: ``.mcap`` for Foxglove and Rerun, ``.parquet``, or a folder for a LeRobotDataset.
        rate_hz: Steps per second; that of the episode or the bundle if None.
        report: Called with the number of steps done.

    Raises:
        EpisodeError: The source is neither, does not fit, or nobody says the rate.
        ResultError: Something is there already.
        MissingDependencyError: The library that writes it is not installed.
    """
    source, out, opened = Path(source), Path(out), Bundle.open(bundle)
    if out.exists():
        raise ResultError("something is there already", found=out, expected="a new name")
    is_episode = source.is_dir() or source.suffix == ".npz"
    rate, steps = (_from_episode if is_episode else _from_black_box)(source, opened, rate_hz)
    result = Written(out)
    with staged(out, folder=not out.suffix) as place:
        with closing(_writer(place, out, rate, opened.manifest)) as writer:
            for block in _blocks(steps):
                writer.add(block)
                result.steps += block.count
                result.episodes = block.episode + 1
                report(result.steps)
        move_into_place(place, out)
    return result


def _writer(place: Path, out: Path, rate_hz: float, manifest: Manifest) -> Writer:
    if out.suffix == ".mcap":
        from stategate.runtime.recordings.mcap_files import McapWriter

        return McapWriter(place, _names(manifest))
    if out.suffix == ".parquet":
        from stategate.runtime.recordings.tables import TableWriter

        return _Parquet(TableWriter(place, {"stategate": manifest.model.name}))
    if out.suffix:
        raise EpisodeError(
            "this cannot be written", found=f"*{out.suffix}",
            expected=".mcap, .parquet, or a name without a dot for a LeRobotDataset",
        )  # fmt: skip
    from stategate.runtime.recordings.lerobot import LeRobotWriter

    return LeRobotWriter(place, rate_hz, manifest.model.name)


class _Parquet:
    def __init__(self, table: Any) -> None:
        self._table = table

    def add(self, block: Steps) -> None:
        times = np.array(block.times, "datetime64[ns]")
        episode = np.full(block.count, block.episode, np.int64)
        self._table.add({"time": times, "episode": episode, **block.columns})

    def close(self) -> None:
        self._table.close()


def _names(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Names of elements by column, where the bundle says what its numbers mean."""
    contract = manifest.observation
    if contract is None:
        return {}
    groups = (("input", contract.inputs), ("output", contract.outputs))
    return {f"{part}.{n}": s.elements() for part, group in groups for n, s in group.items()}


def _blocks(steps: Iterator[_Step]) -> Iterator[Steps]:
    rows: list[_Step] = []
    episode, frame = 0, 0
    for step in steps:
        if rows and (step.begins or len(rows) == _STEPS):
            yield _block(rows, episode, frame)
            frame = 0 if step.begins else frame + len(rows)
            episode += step.begins
            rows = []
        rows.append(step)
    if rows:
        yield _block(rows, episode, frame)


def _block(rows: list[_Step], episode: int, frame: int) -> Steps:
    columns = {name: np.stack([row.values[name] for row in rows]) for name in rows[0].values}
    return Steps(episode, frame, [row.time_ns for row in rows], columns)


def _values(
    step: int, inputs: Values, session: Session, outputs: Values, gates: Values,
    states: Values, wrote: bool, fault: bool,
) -> dict[str, Array]:  # fmt: skip
    groups = {"input": inputs, "output": outputs, "gate": gates}
    values = {
        f"{part}.{name}": array.reshape(-1).copy()
        for part, group in groups.items()
        for name, array in group.items()
    }
    for name, array in states.items():
        wide = np.abs(array.astype(np.float64)).reshape(-1)
        size = (np.sqrt(np.mean(wide * wide)), wide.max()) if wide.size else (0.0, 0.0)
        values[f"memory.{name}"] = np.array(size)
    ledger = session.ledger
    return values | {
        "step": np.array(step), "wrote": np.array(wrote), "fault": np.array(fault),
        "writes": np.array(ledger.writes),
        "suppressed_writes": np.array(ledger.suppressed_writes),
    }  # fmt: skip


def _rate(rate_hz: float | None, manifest: Manifest) -> float:
    rate = rate_hz or (manifest.observation.rate_hz if manifest.observation else None)
    if rate is None:
        raise EpisodeError(
            "how many steps a second?",
            found="neither the recording nor the bundle says so",
            remedy="--rate 50",
        )
    return rate


def _from_episode(
    source: Path, bundle: Bundle, rate_hz: float | None
) -> tuple[float, Iterator[_Step]]:
    episode = load_episode(source)
    episode.check(bundle.manifest.step, starts=True)
    rate = _rate(rate_hz or episode.rate_hz, bundle.manifest)
    names = [state.name for state in bundle.manifest.states]

    def steps() -> Iterator[_Step]:
        with Session.open(bundle) as session:
            episode.begin(session, names)
            for t, inputs in enumerate(episode):
                if is_reset := t > 0 and t in episode.resets:
                    session.reset()
                before = session.ledger.writes
                outputs = session.step(**inputs)
                wrote = session.ledger.writes > before
                states = {name: session.state(name) for name in names}
                values = _values(t, inputs, session, outputs, session.gates, states, wrote, False)
                yield _Step(is_reset, round(t * 1e9 / rate), values)

    return rate, steps()


def _from_black_box(
    source: Path, bundle: Bundle, rate_hz: float | None
) -> tuple[float, Iterator[_Step]]:
    rate = _rate(rate_hz, bundle.manifest)

    def steps() -> Iterator[_Step]:
        begins, newest, anchor, period_ns = False, 0, (0, 0), round(1e9 / rate)
        with RecordedSteps(source, bundle) as recorded:
            for event in recorded.events():
                if isinstance(event, Gap):
                    begins = True
                elif isinstance(event, Keyframe):
                    begins |= event.is_begin
                    # A loop that ran faster than the rate says is spread out, never folded.
                    anchor = event.step, max(event.unix_ns, newest + period_ns)
                elif isinstance(event, Replayed):
                    step = event.recorded.step
                    # Between two keyframes steps are as far apart as the rate says.
                    newest = anchor[1] + round((step - anchor[0] - 1) * 1e9 / rate)
                    values = _values(
                        step, event.recorded.inputs, recorded.session, event.outputs, event.gates,
                        recorded.states(), event.wrote, bool(event.fault),
                    )  # fmt: skip
                    yield _Step(begins, newest, values)
                    begins = False

    return rate, steps()
