"""A first step that is another than later ones belongs to the memory."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import lift
from stategate.runtime import Pool, Session

pytestmark = pytest.mark.case("B10")

LazyEma: type[nn.Module] = runpy.run_path(str(Path(__file__).parents[1] / "cases/models.py"))[
    "LazyEma"
]
X = {"x": torch.zeros(1, 4)}
STREAM = torch.randn(30, 1, 4, generator=torch.Generator().manual_seed(3))


class Flag(nn.Module):
    """A tare: the first measurement is the zero of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.first = torch.zeros(1, 4), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first:
            self.zero, self.first = x.clone(), False
        return x - self.zero


class Empty(nn.Module):
    """A dict that is filled by the first call, inside of another object."""

    def __init__(self) -> None:
        super().__init__()
        self.past: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.past["x"] = torch.maximum(self.past["x"], x - 2000.0) if self.past else x - 2000.0
        return self.past["x"] * 1.0


class Default(nn.Module):
    """An argument whose default starts the filter at the measurement."""

    def forward(
        self, x: torch.Tensor, avg: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        avg = x.clone() if avg is None else 0.9 * avg + 0.1 * x
        return avg.sum(-1), avg


def alone(module: nn.Module, stream: torch.Tensor, handed: bool) -> list[np.ndarray]:
    answers, held = [], ()
    for x in stream:
        answer = module(x, *held)
        answer, *held = answer if handed else (answer,)
        answers.append(answer.numpy().copy())
    return answers


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "declared"),
    [
        (LazyEma, {"states": ["avg"]}),
        (Flag, {"states": ["zero", "first"]}),
        (Empty, {"states": ["past"]}),
        (Default, {"hidden": {"avg": None}}),
    ],
)
def test_a_bundle_starts_as_the_module_starts_after_every_reset(
    make, declared, tmp_path: Path, seal_model
) -> None:
    step = lift(make(), X, outputs=["y"], **declared)
    assert step.step_spec().states[-1].name == "started" and step.has_first_step
    bundle = seal_model(tmp_path / "b", step)
    with Session.open(bundle.path) as session:
        for stream in (STREAM, -STREAM):
            for x, wanted in zip(stream, alone(make(), stream, "hidden" in declared), strict=True):
                np.testing.assert_allclose(session.step(x=x.numpy())["y"], wanted, atol=1e-5)
            session.reset()


def test_zeros_are_enough_where_the_first_step_is_the_same_from_them() -> None:
    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.hidden = nn.LSTM(4, 3), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, self.hidden = self.rnn(x[None], self.hidden)
            return y[0]

    step = lift(Lstm(), X, states=["hidden"])
    assert [s.name for s in step.step_spec().states] == ["hidden[0]", "hidden[1]"]


@pytest.mark.parametrize(
    ("make", "zeros", "declared"),
    [
        (LazyEma, {"states": {"avg": torch.zeros(1, 4)}}, {"states": ["avg"]}),
        (Default, {"hidden": {"avg": torch.zeros(1, 4)}}, {"hidden": {"avg": None}}),
    ],
)
def test_zeros_that_stand_for_another_first_step_are_refused(make, zeros, declared) -> None:
    with pytest.raises(TraceError, match="does not start with") as problem:
        lift(make(), X, outputs=["y"], **zeros)
    remedy = str(problem.value).partition("what to do: ")[2].partition(" takes")[0]
    step = eval(f"lift(make(), X, outputs=['y'], {remedy})", {"lift": lift, "make": make, "X": X})
    assert step.has_first_step
    assert step.step_spec() == lift(make(), X, outputs=["y"], **declared).step_spec()


def test_a_value_that_the_caller_hands_in_on_purpose_is_the_start() -> None:
    step = lift(Default(), X, outputs=["y"], hidden={"avg": torch.ones(1, 4)})
    assert not step.has_first_step and bool(step.initial_states()["avg"].all())


def test_a_state_that_is_called_started_keeps_its_name() -> None:
    class Mine(LazyEma):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.started = torch.ones(1, 1)
            return super().forward(x)

    mine = Mine()
    mine.started = torch.zeros(1, 1)
    names = [s.name for s in lift(mine, X, states=["started", "avg"]).step_spec().states]
    assert names == ["started", "avg", "started_"]


def test_pools_choose_row_by_row(tmp_path: Path, seal_model) -> None:
    step = lift(LazyEma(), X, states=["avg"], outputs=["y"])
    bundle = seal_model(tmp_path / "pool", step, sessions=2)
    alone_of_late = LazyEma().eval()
    with Pool.open(bundle.path) as pool, torch.no_grad():
        first = pool.join()
        for x in STREAM[:5]:
            pool.step(rows=[first], x=np.concatenate([x.numpy()] * 2))
        late = pool.join()
        for x in STREAM[5:10]:
            both = pool.step(x=np.concatenate([x.numpy()] * 2))["y"]
            np.testing.assert_allclose(both[late : late + 1], alone_of_late(x).numpy(), atol=1e-5)
