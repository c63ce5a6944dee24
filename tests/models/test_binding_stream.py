from __future__ import annotations

import numpy as np
import pytest

from stategate.models.zoo.binding_stream import (
    CLUTTER,
    CONFIGS,
    DISTRACTOR,
    EVENT,
    NO_LABEL,
    QUERY,
    REPEAT,
    BindingStreams,
    StreamConfig,
    World,
    single_stream,
)


class Glass(World):
    """A backbone that hides nothing, so that a test can read what was shown."""

    def features(self, observed: np.ndarray) -> np.ndarray:
        return observed


@pytest.fixture
def glass() -> tuple[StreamConfig, World]:
    config = StreamConfig(6, 10, 0.0, (0.15, 0.1, 0.3, 0.3))
    world = World.random(config, 1)
    return config, Glass(world.entities, world.values, world.w1, world.b1, world.w2)


def nearest(codes: np.ndarray, shown: np.ndarray) -> int:
    return int(np.linalg.norm(codes - shown, axis=1).argmin())


def test_a_query_asks_for_the_value_that_was_bound_last(glass) -> None:
    config, world = glass
    streams = BindingStreams(config, world, 3, 2)
    bound: list[dict[int, int]] = [{} for _ in range(3)]
    asked = 0
    for chunk in (streams.take(150), streams.take(250)):
        for t in range(len(chunk.kind)):
            for i in range(3):
                entity = nearest(world.entities, chunk.z[t, i, :24])
                value = nearest(world.values, chunk.z[t, i, 24:40])
                kind = chunk.kind[t, i]
                if kind == EVENT:
                    assert bound[i].get(entity) != value
                    bound[i][entity] = value
                elif kind == REPEAT:
                    assert bound[i][entity] == value
                elif kind == DISTRACTOR:
                    assert entity >= config.relevant
                elif kind == QUERY:
                    asked += 1
                    assert chunk.label[t, i] == bound[i][entity]
                    assert (chunk.z[t, i, 24:40] == 0).all()
                assert (chunk.label[t, i] == NO_LABEL) == (kind != QUERY)
    assert asked > 100


def test_a_reset_stream_asks_for_nothing_it_has_not_shown(glass) -> None:
    config, world = glass
    streams = BindingStreams(config, world, 2, 3)
    streams.take(100)
    streams.reset(np.array([True, False]))
    first = streams.take(1)
    assert first.kind[0, 0] in (EVENT, DISTRACTOR, CLUTTER)


@pytest.mark.parametrize("name", CONFIGS)
def test_kinds_come_as_often_as_configured(name: str) -> None:
    config = CONFIGS[name]
    chunk = BindingStreams(config, World.random(config, 0), 16, 1).take(2000)
    shares = [(chunk.kind == kind).mean() for kind in (EVENT, REPEAT, DISTRACTOR, QUERY)]
    np.testing.assert_allclose(shares, config.kinds, atol=0.01)


def test_the_same_seed_gives_the_same_stream() -> None:
    config = CONFIGS["hard"]
    world = World.random(config, 0)
    a, b = (np.concatenate([c.z for c in single_stream(config, world, 700, 5, 256)]) for _ in "ab")
    assert a.tobytes() == b.tobytes() and a.shape == (700, 1, 64)
