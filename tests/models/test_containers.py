"""Observations and states in dicts, dataclasses and caches of a package's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stategate
from stategate.contract.errors import TraceError
from stategate.models import lift
from stategate.runtime import Pool, Session

pytestmark = pytest.mark.case("B19")

X = {"x": torch.zeros(1, 4)}
STREAM = torch.randn(20, 1, 4, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Memory:
    """A state of a user's own class, with a size that never changes."""

    h: Tensor
    age: int
    size: int = 4


class Layer:
    """A part of a cache that makes its tensor when it first knows the shape."""

    __slots__ = ("filled", "past", "rows")

    def __init__(self, rows: int) -> None:
        self.filled, self.past, self.rows = False, None, rows

    def push(self, x: Tensor) -> Tensor:
        if not self.filled:
            self.past, self.filled = x.expand(self.rows, -1).clone(), True
        self.past = torch.cat((self.past[1:], x))
        return self.past


class Cache:
    """As transformers builds them: a list of layers, flags, and a name of its own owner."""

    def __init__(self, rows: int) -> None:
        self.layers, self.owner = [Layer(rows), Layer(rows)], self


class Nested(nn.Module):
    """A dict of observations; memory in a dict whose parts have their sessions on other axes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.rnn = nn.GRU(4, 4)

    def forward(self, obs: dict, mem: dict) -> tuple[Tensor, dict]:
        y, h = self.rnn((obs["joint.pos"] + obs["camera"]["mean"])[None], mem["h"])
        return y[0] + mem["avg"], {"h": h, "avg": 0.9 * mem["avg"] + 0.1 * obs["joint.pos"]}


class WithDataclass(nn.Module):
    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        h = 0.9 * memory.h + x / memory.size
        return h * memory.age, Memory(h, memory.age + 1, memory.size)


class WithCache(nn.Module):
    """Gives its cache back in a dict, beside what nobody asked for."""

    def forward(self, x: Tensor, cache: Cache | None = None) -> dict:
        for layer in cache.layers:
            x = layer.push(x).mean(0, keepdim=True) + 0.1 * x
        return {"y": x, "cache": cache, "attentions": None}


class Extremes(nn.Module):
    """The largest value so far, and the last forty, of which some are still minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.full((1, 4), -torch.inf))
        self.register_buffer("least", torch.full((1, 4), torch.inf))
        self.register_buffer("past", torch.full((1, 40), -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        self.most, self.least = torch.maximum(self.most, x), torch.minimum(self.least, x)
        self.past = torch.cat((self.past[:, 1:], x[:, :1]), 1)
        return self.most - self.least + torch.softmax(self.past, -1).amax(-1, keepdim=True)


def answers(module: nn.Module, stream: Iterable[Tensor], memory: object) -> list[Tensor]:
    """What a module gives alone, with its memory handed round by hand."""
    given = []
    for x in stream:
        y, memory = module(x, memory)
        given.append(y)
    return given


@torch.no_grad()
def test_a_nested_dict_of_observations_is_an_input_for_each_key(tmp_path: Path, seal_model) -> None:
    zeros = torch.zeros(1, 1, 4), torch.zeros(1, 4)
    step = lift(
        Nested(),
        {"obs": {"joint.pos": torch.zeros(1, 4), "camera": {"mean": torch.zeros(1, 1)}}},
        hidden={"mem": dict(zip(("h", "avg"), zeros, strict=True))},
        session_axes={"mem['h']": 1},
    )
    inputs = [t.name for t in step.step_spec().inputs]
    assert inputs == ["joint.pos", "camera_mean"]
    with Pool.open(seal_model(tmp_path / "b", step, sessions=2).path) as pool:
        pool.join(), pool.join()
        memory = dict(zip(("h", "avg"), zeros, strict=True))
        for x in STREAM:
            mean = x.mean(-1, keepdim=True)
            y, memory = Nested()({"joint.pos": x, "camera": {"mean": mean}}, memory)
            rows = (np.repeat(part.numpy(), 2, 0) for part in (x, mean))
            given = pool.step(**dict(zip(inputs, rows, strict=True)))["output"]
            np.testing.assert_allclose(given, np.repeat(y.numpy(), 2, 0), atol=1e-5)


@torch.no_grad()
def test_a_dataclass_is_a_state_whose_unchanging_numbers_are_constants() -> None:
    start = Memory(torch.zeros(1, 4), 0)
    step = lift(WithDataclass(), X, hidden={"memory": start})
    assert [s.name for s in step.step_spec().states] == ["memory.h", "memory.age"]
    states = step.initial_states()
    for x, right in zip(STREAM, answers(WithDataclass(), STREAM, start), strict=True):
        result = step.step({"x": x}, states)
        states = result.states
        assert torch.equal(result.outputs["output"], right)


@torch.no_grad()
def test_a_cache_that_is_filled_by_its_first_step_is_a_state(tmp_path: Path, seal_model) -> None:
    step = lift(WithCache(), X, hidden={"cache": Cache(3)}, outputs=["y"])
    assert [s.name for s in step.step_spec().states] == [
        "cache.layers[0].past",
        "cache.layers[1].past",
        "started",
    ]
    with Session.open(seal_model(tmp_path / "b", step).path) as session:
        for _ in range(2):
            alone, cache = WithCache(), Cache(3)
            for x in STREAM:
                given = session.step(x=x.numpy())["y"]
                np.testing.assert_allclose(given, alone(x, cache)["y"], atol=1e-5)
            session.reset()


@torch.no_grad()
def test_a_state_that_starts_at_infinity_is_the_last_finite_number(
    tmp_path: Path, seal_model
) -> None:
    names = ["most", "least", "past"]
    step = lift(Extremes(), X, states=names)
    first = step.initial_states()
    limit = torch.finfo(torch.float32).max
    assert float(first["most"].max()) == -limit and float(first["least"].min()) == limit
    with Session.open(seal_model(tmp_path / "b", step).path) as session:
        for _ in range(2):
            alone = Extremes()
            for x in STREAM:
                np.testing.assert_allclose(session.step(x=x.numpy())["output"], alone(x), atol=1e-5)
            session.reset()


def test_what_an_object_sets_later_and_only_once_is_refused_by_its_path() -> None:
    class Late(WithDataclass):
        def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
            # 0, 0, 0, 0, 1: constant in the steps that are looked at.
            return x, Memory(memory.h + x, memory.age + 1, memory.size + (memory.age == 4))

    with pytest.raises(TraceError, match=r"memory\.size"):
        step = lift(Late(), X, hidden={"memory": Memory(torch.zeros(1, 4), 4)})
        step.step({"x": X["x"]}, step.initial_states())


@pytest.mark.parametrize(
    ("example", "finding"),
    [
        ({"x": {"a": torch.zeros(1, 4), "b": 3}}, r"example input 'b' is no tensor[\s\S]*int"),
        ({"x": {"a": torch.zeros(1, 4), 1: {}}, "a": None}, "is no tensor"),
    ],
)
def test_an_input_that_is_no_tensor_is_refused_by_name(example, finding) -> None:
    with pytest.raises(TraceError, match=finding):
        lift(WithCache(), example, hidden={"cache": Cache(3)})


def test_an_axis_of_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TraceError, match=r"mem\['q'\][\s\S]*mem\['h'\]"):
        lift(
            Nested(),
            {"obs": {"joint.pos": torch.zeros(1, 4), "camera": {"mean": torch.zeros(1, 1)}}},
            hidden={"mem": {"h": torch.zeros(1, 1, 4), "avg": torch.zeros(1, 4)}},
            session_axes={"mem['q']": 1},
        )


class Sound(nn.Module):
    """Pre-emphasis of 16-bit samples: both the input and the memory are integers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1, 1, dtype=torch.int16)

    def forward(self, samples: Tensor) -> Tensor:
        past, self.last = torch.cat((self.last, samples[:, :-1]), 1), samples[:, -1:]
        return (samples.float() - 0.97 * past.float()).round().clamp(-32768, 32767).short()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("engines", ["onnxruntime", "native"])
def test_sound_of_16_bits_is_an_input_a_state_and_an_output(engines, tmp_path: Path) -> None:
    step = lift(Sound(), {"samples": torch.zeros(1, 8, dtype=torch.int16)}, states=["last"])
    bundle = stategate.make(step, tmp_path / "b", steps=50, engines=engines)
    alone, draw = Sound(), np.random.default_rng(0)
    with Session.open(bundle.path) as session:
        for _ in range(20):
            samples = draw.integers(-32768, 32767, (1, 8), dtype=np.int16, endpoint=True)
            given = session.step(samples=samples)["output"]
            assert given.dtype == np.int16
            np.testing.assert_array_equal(given, alone(torch.from_numpy(samples)))
