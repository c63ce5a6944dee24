"""Held-out streams, the same for every model, and the schedules that two of them write by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.training.aura import PERIOD
from lab.training.stream import Recipe
from stategate.models.zoo.binding_stream import (
    CLUTTER,
    CONFIGS,
    DISTRACTOR,
    EVENT,
    NO_LABEL,
    QUERY,
    VALUES,
    BindingStreams,
    Chunk,
    StreamConfig,
    World,
)

HORIZONS = ((64, 64), (1024, 8), (4096, 8), (16_384, 4), (100_000, 2))
"""Steps from an empty memory, and how many streams of them."""
SHIFTED_HORIZONS = ((4096, 8), (16_384, 4))
LESSON_STEPS, SESSION_STEPS = 64, 256
ENTITIES_OF_LESSON = 8
SESSIONS = tuple(range(8))
"""Between a lesson and the questions about it."""
VALIDATION = (2, 16_384)  # streams and steps on which a budget's threshold is found
VALIDATION_SEED = 1_000_003
TEST_SEED = 3_000_017  # plus the horizon; trainings use the small numbers
_HARD = CONFIGS["hard"]

SHIFTED: dict[str, StreamConfig] = {
    "hard, events 2.5 times as often": replace(_HARD, kinds=(0.30, 0.10, 0.20, 0.30)),
    "hard, events 4 times as rare": replace(_HARD, kinds=(0.03, 0.10, 0.45, 0.22)),
    "hard, gaps 10 times as long": CONFIGS["slow"],
}
"""Deployed only: the hard stream as no training saw it."""
INTERFERENCE = "hard, a lesson and sessions about other things"
STREAMS = {**CONFIGS, **SHIFTED, INTERFERENCE: _HARD}


class HeldOut(NamedTuple):
    """Streams of one length.

    Attributes:
        z: ``(streams, time, 1, 64)`` float32: one step's input is ``z[i, t]``.
        label: ``(streams, time)`` int64, -1 where nothing is asked.
        event: ``(streams, time)`` bool, where something to remember changes.
        needed: ``(streams, time)`` bool, events whose binding is asked for before the next event of
            the same entity, or the end.
        value: ``(streams, time)`` int64, what is shown or asked for.
    """

    z: NDArray[np.float32]
    label: NDArray[np.int64]
    event: NDArray[np.bool_]
    needed: NDArray[np.bool_]
    value: NDArray[np.int64]


@lru_cache(maxsize=len(HORIZONS))
def held_out(stream: str, steps: int, count: int, seed: int = TEST_SEED) -> HeldOut:
    """Streams that no training has seen; a world is that of its configuration."""
    config = stream.split(",")[0]
    world = Recipe(config=config).world()
    if stream == INTERFERENCE:
        parts = [_lesson(world, steps, count, seed)]
    else:
        source = BindingStreams(STREAMS[stream], world, count, seed + steps)
        parts = [source.take(min(2048, steps - start)) for start in range(0, steps, 2048)]
    z = np.concatenate([part.z for part in parts]).transpose(1, 0, 2)
    return HeldOut(
        z=np.ascontiguousarray(z)[:, :, None, :],
        label=np.concatenate([part.label for part in parts]).T,
        event=np.concatenate([part.kind == EVENT for part in parts]).T,
        needed=_needed(parts).T,
        value=np.concatenate([part.value for part in parts]).T,
    )


def steps_of_lesson(sessions: int) -> int:
    """Of a lesson, so many sessions about other things, and one question about each entity."""
    return LESSON_STEPS + sessions * SESSION_STEPS + ENTITIES_OF_LESSON


def _lesson(world: World, steps: int, count: int, seed: int) -> Chunk:
    """Half of the entities are bound in a lesson, and asked for at the end; see docs/evidence.

    In between are ordinary streams of the other half. Lessons and questions are the same whatever
    lies between; only the last questions have labels.
    """
    rng, half = np.random.default_rng(seed), ENTITIES_OF_LESSON
    everyone = np.arange(count)
    order = rng.permuted(np.tile(np.arange(_HARD.relevant), (count, 1)), axis=1)
    bound = rng.integers(VALUES, size=(half, count))
    places = rng.permuted(np.tile(np.arange(LESSON_STEPS), (count, 1)), axis=1)[:, :half].T
    questions = rng.permuted(np.tile(np.arange(half), (count, 1)), axis=1).T
    kind = np.where(rng.random((LESSON_STEPS, count)) < 0.5, DISTRACTOR, CLUTTER).astype(np.int8)
    entity, value = np.zeros((2, LESSON_STEPS, count), dtype=np.int64)
    value[:] = rng.integers(VALUES, size=value.shape)  # what distractors show
    kind[places, everyone], value[places, everyone] = EVENT, bound
    entity[places, everyone] = order[:, :half].T
    others = BindingStreams(replace(_HARD, relevant=half), world, count, seed)
    kinds, entities, values = others.draw(steps - LESSON_STEPS - half)
    chunk = BindingStreams(_HARD, world, count, seed + 1).show(
        np.concatenate([kind, kinds, np.full((half, count), QUERY, dtype=np.int8)]),
        np.concatenate([entity, order[everyone, half + entities], order[everyone, questions]]),
        np.concatenate([value, values, bound[questions, everyone]]),
    )
    chunk.label[:-half] = NO_LABEL
    return chunk


def _needed(parts: Sequence[Chunk]) -> NDArray[np.bool_]:
    """Events whose binding is asked for while it holds, found from the end backwards."""
    kind, entity = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("kind", "entity")
    )
    needed, streams = np.zeros(kind.shape, dtype=bool), np.arange(kind.shape[1])
    awaited = np.zeros((kind.shape[1], int(entity.max()) + 1), dtype=bool)
    for t in reversed(range(len(kind))):
        event, waiting = kind[t] == EVENT, awaited[streams, entity[t]]
        needed[t] = event & waiting
        awaited[streams, entity[t]] = (waiting & ~event) | (kind[t] == QUERY)
    return needed


def steps_per_asked_event(stream: str) -> float:
    """What a gate that knows the future could come to, once every entity is bound.

    An entity's next event or query is a query with the chance q / (q + e), where e and q are the
    chances of an event and of a query in a step.
    """
    event, _, _, query = STREAMS[stream].kinds
    return (event + query) / (event * query)


def schedule(rule: str, unseen: HeldOut, i: int) -> NDArray[np.float32]:
    """When a schedule writes: ``(time, 1, 1)``, 1 or 0.

    Args:
        rule: ``periodic``, every eighth step from the first; ``oracle``, at events; ``foresight``,
            at events that are asked for; or ``random``, each step with a chance of one in eight.
        unseen: The streams.
        i: Which of them; the seed of the random one.
    """
    steps = unseen.label.shape[1]
    if rule == "oracle":
        writes = unseen.event[i]
    elif rule == "foresight":
        writes = unseen.needed[i]
    elif rule == "periodic":
        writes = np.arange(steps) % PERIOD == 0
    else:
        writes = np.random.default_rng(i).random(steps) < 1 / PERIOD
    return np.asarray(writes[:, None, None], dtype=np.float32)
