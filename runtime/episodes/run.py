"""Stepping a bundle through a long episode while measuring it: the job of ``stategate run``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from stategate.contract import Episode, ObservationContract
from stategate.contract.claims import check_loop_rate
from stategate.contract.errors import EpisodeError
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.base.process import rss_bytes
from stategate.runtime.session import Session

_SAMPLES = 200


@dataclass(frozen=True, slots=True)
class Timeline:
    """Samples over the horizon, about two hundred whatever its length."""

    step: list[int]  # steps done at each sample
    writes: list[int]  # writes so far
    rss_bytes: list[int]  # resident memory of the process, or 0 where the system does not tell


@dataclass(frozen=True, slots=True)
class RunResult:
    """One episode, stepped and measured; written as ``ledger.json``."""

    model: str  # name of the model
    bundle_sha256: str  # digest of the bundle
    engine: str  # engine and version
    ledger: Ledger  # what the memory did
    asked_steps: int  # steps of this run as they were asked for
    done_steps: int  # steps of this run that were done; fewer where a signal ended it
    state_bytes: int  # one bank of all states; the same at every step
    write_ratio: float | None  # steps per write, or None without a write
    accuracy: float | None  # share of labelled steps answered rightly, or None without labels
    judged_steps: int
    p50_us: float  # median wall time of ``Session.step``
    p99_us: float  # 99th percentile of the same
    rss_start_bytes: int  # resident memory when the bundle and the episode were loaded
    rss_warm_bytes: int  # the same after 1 % of the steps: engines allocate once in their first
    rss_end_bytes: int  # the same after the last step
    # growth of the key-value cache that this memory replaces, or None
    kv_bytes_per_step: int | None
    kv_bytes_end: int | None  # its size after the last step, or None
    kv_over_state: float | None  # that size in units of ``state_bytes``, or None
    timeline: Timeline  # for the picture
    health_alarm: str | None = None


def run_episode(
    session: Session,
    episode: Episode,
    steps: int | None = None,
    report: Callable[[int], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Step an open session through an episode, over and over if it is shorter than ``steps``.

    Args:
        session: Freshly opened.
        episode: Inputs, and labels where answers are judged.
        steps: How many; the episode's length when None.
        report: Called with the number of steps done, about two hundred times.
        stop: Asked after every step whether the run shall end early.
    """
    episode.check(session.manifest.step, starts=True)
    manifest = session.manifest
    if episode.rate_hz is not None:
        check_loop_rate(manifest.observation, episode.rate_hz)
    steps = episode.steps if steps is None else steps
    if steps <= 0:
        raise EpisodeError("there is nothing to run", found=f"{steps} steps", expected="1 or more")
    judge = _Judge(session, episode)
    elapsed_ns = np.zeros(steps, dtype=np.int64)
    elapsed_ns.fill(1)  # touch the pages now, so that they do not count as growth
    timeline = Timeline([0], [0], [rss_bytes()])
    every = max(1, steps // _SAMPLES)
    warm = max(1, steps // 100)
    rss_warm = 0
    for t, inputs in enumerate(itertools.islice(endless(session, episode), steps)):
        start = perf_counter_ns()
        session.step(**inputs)
        elapsed_ns[t] = perf_counter_ns() - start
        judge.look(t % episode.steps)
        if t + 1 == warm:
            rss_warm = rss_bytes()
        stopped = stop()
        if (t + 1) % every == 0 or t + 1 == steps or stopped:
            timeline.step.append(t + 1)
            timeline.writes.append(session.ledger.writes)
            timeline.rss_bytes.append(rss_bytes())
            report(t + 1)
        if stopped:
            break
    done = timeline.step[-1]
    kv = manifest.model.kv_bytes_per_step
    p50, p99 = np.percentile(elapsed_ns[:done], (50, 99)) / 1000.0
    return RunResult(
        model=manifest.model.name,
        bundle_sha256=session.bundle_digest,
        engine=session.engine_name,
        ledger=session.ledger,
        asked_steps=steps,
        done_steps=done,
        state_bytes=manifest.state_bytes,
        write_ratio=session.ledger.write_ratio,
        accuracy=judge.accuracy,
        judged_steps=judge.judged,
        p50_us=float(p50),
        p99_us=float(p99),
        rss_start_bytes=timeline.rss_bytes[0],
        rss_warm_bytes=rss_warm or timeline.rss_bytes[-1],
        rss_end_bytes=timeline.rss_bytes[-1],
        kv_bytes_per_step=kv,
        kv_bytes_end=kv * done if kv is not None else None,
        kv_over_state=kv * done / manifest.state_bytes if kv is not None else None,
        timeline=timeline,
        health_alarm=session.health.alarm if session.health is not None else None,
    )


def endless(session: Session, episode: Episode) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of an episode, over and over; the memory is put where the episode starts from.

    Whether it begins anew with each repetition is a reset rule of the bundle's.
    """
    states = [state.name for state in session.manifest.states]
    rules = (session.manifest.observation or ObservationContract()).resets
    resets = {*episode.resets, *[0] * rules.each_episode}
    episode.begin(session, states)
    for t in itertools.count():
        step = t % episode.steps
        if t and step in resets:
            session.reset()  # another recording begins, or this one once more
            if step == 0:
                episode.begin(session, states)
        yield {name: array[step, ...] for name, array in episode.inputs.items()}


class _Judge:
    """Compares the largest element of each labelled output with its label."""

    def __init__(self, session: Session, episode: Episode) -> None:
        self._labelled = [
            (session.outputs[name], labels.tolist()) for name, labels in episode.labels.items()
        ]
        self.judged = 0
        self._right = 0

    def look(self, t: int) -> None:
        for output, labels in self._labelled:
            if labels[t] >= 0:
                self.judged += 1
                self._right += int(output.argmax()) == labels[t]

    @property
    def accuracy(self) -> float | None:
        return self._right / self.judged if self.judged else None
