"""Warm-up: steps after a reset until a memory decides as one with a history does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import islice

import numpy as np

from stategate.contract import Bundle, Episode
from stategate.contract.health import WarmUp
from stategate.contract.stored import Array
from stategate.contract.write_rule import opens
from stategate.runtime.session import Session

_TOLERANCE = 0.01  # of outputs, in units of the largest magnitude so far
# Places in each episode, evenly spread; how far to look after each, or a quarter of the episode.
_CUTS, _STEPS = 16, 1000
_LEAST = 8  # steps to look, or nothing is said
_LOOKS = 20  # of an episode so many times what is looked, at most


def measure_warm_up(
    bundle: Bundle,
    episodes: Iterable[Episode],
    report: Callable[[int], None] = lambda _: None,
) -> WarmUp | None:
    """Begin memories anew at many places of each episode, beside one that goes on.

    ``report`` is called with the steps of that one. None where every episode is too short.
    """
    needed: list[float] = []
    furthest = done = 0
    for episode in episodes:
        look = min(_STEPS, episode.steps // 4)
        furthest = max(furthest, look if look >= _LEAST else 0)
        needed += steps_to_warm(bundle, episode, _CUTS, look)
        done += episode.steps
        report(done)
    return summary(needed, furthest)


def summary(needed: list[float], steps: int) -> WarmUp | None:
    """What cuts of several episodes say together; None without any."""
    if not needed:
        return None
    middle = sorted(needed)[(len(needed) - 1) // 2]
    median, worst = (int(n) if math.isfinite(n) else None for n in (middle, max(needed)))
    return WarmUp(len(needed), median, worst, steps, _TOLERANCE)


def steps_to_warm(bundle: Bundle, episode: Episode, cuts: int, look: int) -> list[float]:
    """Steps that each memory needed; infinity where it still differed at the end."""
    if look < _LEAST:
        return []
    end = min(episode.steps, _LOOKS * look)
    places = np.linspace(look, end - look, cuts).astype(int).tolist()
    needed: dict[int, float] = dict.fromkeys(places, 0.0)
    sizes: dict[str, float] = {}
    with ExitStack() as stack:

        def begun() -> Session:
            return stack.enter_context(Session.open(bundle, health="off"))

        old = begun()
        names = [state.name for state in old.manifest.states]
        spare: list[Session] = []
        young: list[tuple[int, Session]] = []
        limits = old.manifest.step.thresholds
        episode.check(old.manifest.step, starts=True)
        episode.begin(old, names)
        for t, inputs in enumerate(islice(episode, end)):
            if t in needed:
                session = spare.pop() if spare else begun()
                session.reset()
                episode.begin(session, names)
                young.append((t, session))
            old.step(**inputs)
            for name, array in old.outputs.items():
                if array.dtype.kind == "f":
                    sizes[name] = max(sizes.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
            for start, session in young:
                session.step(**inputs)
                if _differs(old, session, sizes, limits):
                    needed[start] = t - start + 1 if t - start + 1 < look else math.inf
            ready = [each for each in young if t - each[0] + 1 == look]
            young = [each for each in young if each not in ready]
            spare += [session for _, session in ready]
    return list(needed.values())


def _differs(
    old: Session, young: Session, sizes: dict[str, float], limits: dict[str, float]
) -> bool:
    for gate, limit in limits.items():
        if (opens(old.gates[gate], limit) != opens(young.gates[gate], limit)).any():
            return True
    return any(_far(array, young.outputs[n], sizes.get(n)) for n, array in old.outputs.items())


def _far(one: Array, other: Array, size: float | None) -> bool:
    if size is None:
        return not np.array_equal(one, other)
    gap = np.abs(np.subtract(one, other, dtype=np.float64)).max(initial=0.0)
    return bool(gap > _TOLERANCE * size)
