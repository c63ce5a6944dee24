"""The health envelope of a bundle, learned by stepping it through recorded episodes.

Windows of the episodes are divided. One part says what a signal's range is; the other, how far all
ranges have to be widened so that few of its windows are outside. Where windows of use come from
where these came from, one of them is outside with the chance of its rank among these (split
conformal prediction): no form of any distribution is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stategate.calibration.health.limits import check_length, choose, ranks
from stategate.calibration.health.warm_up import measure_warm_up
from stategate.calibration.recordings import Episodes, on_disk
from stategate.common import console
from stategate.contract import (
    Bundle,
    Episode,
    FileRef,
    ObservationContract,
    refuse_to_replace,
    sha256,
    write_bundle,
)
from stategate.contract.errors import SpecError
from stategate.contract.health import HealthEnvelope, Limits, Watched
from stategate.runtime.memory.statistics import (
    ROWS,
    Column,
    Integers,
    Statistics,
    kinds,
    whole,
)
from stategate.runtime.session import Session

STEPS_PER_FALSE_ALARM = 1_000_000
_TREND = 0.8  # correlation of ranks from which a statistic counts as one with a trend
_FAR = 1 << 62  # where there is no limit
_BITS = 15  # of the largest number of calibration


@dataclass(frozen=True, slots=True)
class _Recording:
    """What a session's taps had."""

    columns: list[Column]
    rows: NDArray[np.float32]  # ``(steps, columns)``
    states: list[NDArray[np.float32]]  # each ``(steps // ROWS, elements)``
    names: list[str]  # of the states
    not_watched: list[str]


def learn_health(
    bundle: str | Path | Bundle,
    episodes: Episodes,
    out: str | Path,
    *,
    steps_per_false_alarm: float = STEPS_PER_FALSE_ALARM,
    progress: console.Progress | None = None,
) -> Bundle:
    """Write a copy of a bundle with a health envelope.

    Args:
        bundle: Of one session; it is not changed.
        episodes: What it meets in use, gone through once in their order.
        out: Where the copy goes.
        steps_per_false_alarm: Steps between two false alarms, on average and at least.
        progress: Called with stage, steps done and steps in all.

    Raises:
        CalibrationError: The episodes are too short, or too few for so rare an alarm.
        EpisodeError: One does not fit the bundle.
        SpecError: The bundle serves several sessions.
    """
    source = Bundle.open(bundle)
    manifest = source.manifest
    if manifest.sessions != 1:
        raise SpecError(
            "a health envelope is of one stream",
            found=f"a bundle for {manifest.sessions} sessions",
            remedy="export it with --sessions 1",
        )
    refuse_to_replace(Path(out))
    with (
        on_disk(episodes) as files,
        console.progress(2 * files.steps, "learning health", listener=progress) as report,
    ):
        check_length(files.steps)
        recording = _record(source, files.loaded, report)
        digests = [file.sha256() for file in files.files]
        envelope = envelope_of(recording, digests, steps_per_false_alarm, manifest.observation)
        warm_up = measure_warm_up(source, files.loaded, lambda done: report(files.steps + done))
    envelope = msgspec.structs.replace(envelope, warm_up=warm_up)
    manifest = msgspec.structs.replace(manifest, health=envelope)
    contents = {file.path: source.read(file) for file in manifest.all_files}
    if manifest.native is not None:
        from stategate.export.c.health import HEADER, health_header  # reads names of a graph

        contents[HEADER] = health_header(manifest)
        others = tuple(file for file in manifest.files if file.path != HEADER)
        header = FileRef(HEADER, sha256(contents[HEADER]))
        manifest = msgspec.structs.replace(manifest, files=(*others, header))
    return write_bundle(out, manifest, contents)


def _record(
    bundle: Bundle, episodes: Iterable[Episode], report: Callable[[int], None]
) -> _Recording:
    rows: list[NDArray[np.float32]] = []
    states: list[list[NDArray[np.float32]]] = []
    with Session.open(bundle, health="off") as session:
        taps = session.taps()
        names = [state.name for state in session.manifest.states]
        at = steps = 0
        for episode in episodes:
            episode.check(session.manifest.step, starts=True)
            session.reset()
            episode.begin(session, names)
            episode.check_finite()
            for inputs in episode:
                session.step(**inputs)
                taps.take(at)
                at, steps = at + 1, steps + 1
                if at == ROWS:
                    at = 0
                    rows.append(taps.rows.copy())
                    live = {s.spec.name: session.state(s.spec.name) for s in taps.states}
                    states.append(taps.state_numbers(live))
                    report(steps)
    by_state = [np.stack(each) for each in zip(*states, strict=True)]
    watched = [state.spec.name for state in taps.states]
    whole_rows = np.concatenate(rows)
    return _Recording(taps.columns, whole_rows, by_state, watched, taps.not_watched)


def envelope_of(
    recording: _Recording,
    digests: Sequence[str],
    target: float,
    observation: ObservationContract | None = None,
) -> HealthEnvelope:
    """The envelope of a recording, without its warm-up."""
    columns = recording.columns
    exponents = [_exponent(column) for column in recording.rows.T]
    state_exponents = [_exponent(state) for state in recording.states]
    pairs = _pairs(recording.rows)
    places = kinds(columns, len(recording.states))
    base = _base_windows(recording, exponents, pairs, state_exponents)
    trends = _trends(base)
    # What grows or falls all along is nowhere twice, so no limit of it says anything.
    steady = [k for k, trend in enumerate(trends) if not trend]
    limited = [places[k] for k in steady]
    short, long = choose(base[:, steady], limited, target)
    limits: list[Limits] = [{} for _ in range(len(columns) + len(recording.states))]
    long_limits: list[Limits] = [{} for _ in limits]
    for i, kind in places:
        limits[i][kind] = (-_FAR, 0, 0, _FAR)
    for chosen, by_place in ((short, limits), (long, long_limits)):
        for (i, kind), (low, least, greatest, high) in chosen.by_place if chosen else ():
            by_place[i][kind] = (low, least, greatest, high)
    signals = (observation or ObservationContract()).inputs
    names = {tensor: signal.elements() for tensor, signal in signals.items()}
    rest = zip(exponents, limits, pairs, long_limits, strict=False)
    watched = [
        Watched(c.source, c.tensor, c.element, exponent, own, pair, _name(names, c), longer)
        for c, (exponent, own, pair, longer) in zip(columns, rest, strict=True)
    ]
    watched += [
        Watched("state", name, -1, state_exponents[i], limits[len(columns) + i])
        for i, name in enumerate(recording.names)
    ]
    levels = tuple(chosen.level for chosen in (short, long) if chosen)
    rate = sum(1 / level.steps_per_false_alarm for level in levels)
    not_watched = [
        f"{watched[i].words}, {kind}: it grew or fell all through the recordings"
        for (i, kind), trend in zip(places, trends, strict=True)
        if trend
    ]
    if long is None:
        not_watched.append("slow changes: too few windows, or they depend on the one before")
    return HealthEnvelope(
        levels=levels,
        steps_per_false_alarm=float(math.floor(1 / rate)),
        watched=tuple(watched),
        episodes=tuple(digests),
        steps=len(recording.rows),
        not_watched=(*recording.not_watched, *not_watched),
    )


def _trends(base: Integers) -> NDArray[np.bool_]:
    """Which statistics go one way from the first window to the last, by rank."""
    time = np.arange(len(base)) - (len(base) - 1) / 2
    return np.asarray([abs(time @ ranks(each)) > _TREND * (time @ time) for each in base.T])


def _name(names: dict[str, tuple[str, ...]], column: Column) -> str:
    elements = names.get(column.tensor, ()) if column.source == "input" else ()
    return elements[column.element] if column.element < len(elements) else ""


def _exponent(numbers: NDArray[np.float32]) -> int:
    # Of what was always 0, any other number is news: it is counted as if its largest were 1.
    largest = float(np.abs(numbers).max(initial=0.0)) or 1.0
    return max(-100, min(100, _BITS - math.frexp(largest)[1]))


def _pairs(rows: NDArray[np.float32]) -> list[int]:
    """For each column the other one that it moves with most; itself where it moves with none."""
    moved = np.diff(rows, axis=0)
    centred = moved - moved.mean(axis=0, dtype=np.float64)
    norms = np.sqrt((centred**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        together = np.abs(np.nan_to_num(centred.T @ centred / np.outer(norms, norms)))
    np.fill_diagonal(together, 0)
    return [int(j) if together[i, j] > 0 else i for i, j in enumerate(together.argmax(axis=1))]


def _base_windows(
    recording: _Recording,
    exponents: Sequence[int],
    pairs: Sequence[int],
    state_exponents: Sequence[int],
) -> Integers:
    """Statistics of the shortest windows, ``(windows, places)``."""
    statistics = Statistics(recording.columns, exponents, pairs)
    vectors = []
    for start in range(0, len(recording.rows), ROWS):
        statistics.add(recording.rows[start : start + ROWS])
        vectors.append(statistics.vector())
        statistics.begin()
    sizes = [
        np.abs(whole(state, np.float32(2.0**e))).reshape(len(state), -1).sum(axis=1)
        for state, e in zip(recording.states, state_exponents, strict=True)
    ]
    parts = [np.asarray(vectors, np.int64).reshape(len(vectors), -1), *(s[:, None] for s in sizes)]
    return np.concatenate(parts, axis=1)
