"""The controlled benchmark: an event-sparse stream of bindings to remember, without an end.

Every step shows one of: an EVENT (a relevant entity takes a new value), a REPEAT (a relevant entity
with the value it already has), a DISTRACTOR (an entity that is never asked for, in the same
format), a QUERY (a bound relevant entity, value slot empty: the right action is its current value)
or CLUTTER. Which entities are relevant can only be learned from the actions. A frozen random
network turns each observation into the feature that a policy's backbone would give.

The benchmark of arXiv:2606.02775 is not public; this one is in its spirit. NumPy only, so
that a device can be fed without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VALUES = 8
FEATURES = 64
_ENTITY_DIM, _VALUE_DIM, _FLAGS, _HIDDEN = 24, 16, 2, 160
_NORM = 1.5  # of every entity and value code
NO_LABEL = -1

EVENT, REPEAT, DISTRACTOR, QUERY, CLUTTER = range(5)


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How hard the stream is."""

    relevant: int  # entities that may be asked for
    distractors: int  # entities that never are
    noise: float  # standard deviation added to every observation element
    # probabilities of EVENT, REPEAT, DISTRACTOR, QUERY; the rest is CLUTTER
    kinds: tuple[float, float, float, float]


CONFIGS: dict[str, StreamConfig] = {
    "few": StreamConfig(2, 6, 0.08, (0.12, 0.10, 0.36, 0.22)),
    "easy": StreamConfig(8, 24, 0.08, (0.08, 0.08, 0.36, 0.22)),
    "hard": StreamConfig(16, 48, 0.08, (0.12, 0.10, 0.36, 0.22)),
    "xhard": StreamConfig(24, 72, 0.10, (0.12, 0.10, 0.36, 0.22)),
    "slow": StreamConfig(16, 48, 0.08, (0.012, 0.010, 0.036, 0.022)),
}


@dataclass(frozen=True, slots=True)
class World:
    """The codes and the frozen backbone that a trained policy has learned to read.

    Stored beside the policy's weights: a generator's stream may change between NumPy versions,
    a checkpoint must not.
    """

    # ``(relevant + distractors, 24)`` float32 codes; the relevant ones come first
    entities: NDArray[np.float32]
    values: NDArray[np.float32]  # ``(8, 16)`` float32 codes
    w1: NDArray[np.float32]  # ``(42, 160)`` float32
    b1: NDArray[np.float32]  # ``(160,)`` float32
    w2: NDArray[np.float32]  # ``(160, 64)`` float32

    @classmethod
    def random(cls, config: StreamConfig, seed: int) -> World:
        """Draw codes of norm 1.5 and a random tanh network."""
        rng = np.random.default_rng(seed)

        def codes(count: int, dim: int) -> NDArray[np.float32]:
            raw = rng.standard_normal((count, dim))
            unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
            return np.asarray(_NORM * unit, dtype=np.float32)

        observed = _ENTITY_DIM + _VALUE_DIM + _FLAGS
        return cls(
            entities=codes(config.relevant + config.distractors, _ENTITY_DIM),
            values=codes(VALUES, _VALUE_DIM),
            w1=(rng.standard_normal((observed, _HIDDEN)) * 2.0 / observed**0.5).astype(np.float32),
            b1=(rng.standard_normal(_HIDDEN) * 0.1).astype(np.float32),
            w2=(rng.standard_normal((_HIDDEN, FEATURES)) * 1.5 / _HIDDEN**0.5).astype(np.float32),
        )

    def features(self, observed: NDArray[np.float32]) -> NDArray[np.float32]:
        """The backbone: ``(..., 42)`` observations to ``(..., 64)`` features."""
        hidden = np.tanh(observed @ self.w1 + self.b1)
        return np.asarray(hidden @ self.w2, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive steps of several streams."""

    z: NDArray[np.float32]  # ``(time, streams, 64)`` float32 features
    # ``(time, streams)`` int64; the right action at QUERY steps, -1 elsewhere
    label: NDArray[np.int64]
    kind: NDArray[np.int8]  # ``(time, streams)`` int8; EVENT, REPEAT, DISTRACTOR, QUERY or CLUTTER
    # ``(time, streams)`` int64; what is shown or asked for, nothing at CLUTTER
    value: NDArray[np.int64]
    # ``(time, streams)`` int64; the relevant entity of EVENT, REPEAT and QUERY
    entity: NDArray[np.int64]


class BindingStreams:
    """Endless parallel streams; each remembers its own bindings and never resets by itself."""

    def __init__(self, config: StreamConfig, world: World, streams: int, seed: int) -> None:
        self._config = config
        self._world = world
        self._rng = np.random.default_rng(seed)
        self._bound = np.full((streams, config.relevant), NO_LABEL, dtype=np.int64)

    def reset(self, which: NDArray[np.bool_]) -> None:
        """Forget the bindings of the streams where ``which`` (shape ``(streams,)``) is true."""
        self._bound[which] = NO_LABEL

    def take(self, time: int) -> Chunk:
        """The next ``time`` steps of every stream."""
        return self.show(*self.draw(time))

    def draw(self, time: int) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.int64]]:
        """Kind, relevant entity and value of the next steps, ``(time, streams)`` each."""
        config, rng, streams = self._config, self._rng, len(self._bound)
        kinds = np.asarray([*config.kinds, 1.0 - sum(config.kinds)])
        kind = rng.choice(5, size=(time, streams), p=kinds).astype(np.int8)
        entity = rng.integers(config.relevant, size=(time, streams))
        value = rng.integers(VALUES, size=(time, streams))
        pick = rng.random((time, streams, config.relevant))
        shift = rng.integers(1, VALUES, size=(time, streams))
        self._bind(kind, entity, value, pick, shift)
        return kind, entity, value

    def show(
        self, kind: NDArray[np.int8], entity: NDArray[np.int64], value: NDArray[np.int64]
    ) -> Chunk:
        """Steps as they are observed; which distractor appears, and the noise, are drawn here."""
        config, rng, (time, streams) = self._config, self._rng, kind.shape
        foreign = kind == DISTRACTOR
        distractor = config.relevant + rng.integers(config.distractors, size=(time, streams))
        codes = self._world.entities[np.where(foreign, distractor, entity)]
        shown = self._world.values[value]
        random = rng.standard_normal((time, streams, _ENTITY_DIM + _VALUE_DIM)).astype(np.float32)
        random *= _NORM / (_ENTITY_DIM + _VALUE_DIM) ** 0.5
        query = (kind == QUERY)[..., None]
        clutter = (kind == CLUTTER)[..., None]
        observed = np.concatenate(
            [
                np.where(clutter, random[..., :_ENTITY_DIM], codes),
                np.where(clutter, random[..., _ENTITY_DIM:], np.where(query, 0.0, shown)),
                ~(query | clutter),
                query,
            ],
            axis=-1,
            dtype=np.float32,
        )
        noise = rng.standard_normal(observed.shape, dtype=np.float32)
        observed += np.float32(config.noise) * noise
        label = np.where(kind == QUERY, value, NO_LABEL)
        return Chunk(self._world.features(observed), label, kind, value, entity)

    def _bind(
        self,
        kind: NDArray[np.int8],
        entity: NDArray[np.int64],
        value: NDArray[np.int64],
        pick: NDArray[np.float64],
        shift: NDArray[np.int64],
    ) -> None:
        """Walk the bindings through time, correcting the draws in place to what is possible."""
        everyone = np.arange(len(self._bound))
        for t in range(len(kind)):
            asks = (kind[t] == QUERY) | (kind[t] == REPEAT)
            is_bound = self._bound != NO_LABEL
            # Before anything is bound there is nothing to ask or to repeat.
            kind[t, asks & ~is_bound.any(axis=1)] = CLUTTER
            asks &= is_bound.any(axis=1)
            chosen = np.where(is_bound, pick[t], -1.0).argmax(axis=1)
            entity[t] = np.where(asks, chosen, entity[t])
            value[t] = np.where(asks, self._bound[everyone, entity[t]], value[t])
            event = kind[t] == EVENT
            # An event changes the value, or it would be a repeat.
            old = self._bound[everyone, entity[t]]
            same = event & (old == value[t])
            value[t, same] = (value[t, same] + shift[t, same]) % VALUES
            self._bound[everyone[event], entity[t, event]] = value[t, event]


def single_stream(
    config: StreamConfig, world: World, steps: int, seed: int, chunk: int = 4096
) -> Iterator[Chunk]:
    """One long stream in pieces of at most ``chunk`` steps."""
    source = BindingStreams(config, world, 1, seed)
    while steps > 0:
        time = min(chunk, steps)
        yield source.take(time)
        steps -= time
