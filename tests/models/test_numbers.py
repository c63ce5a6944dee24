"""Numbers that a module keeps become states of all their bits."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import StategateError, TraceError
from stategate.models import lift
from stategate.runtime import Session

X = {"x": torch.zeros(1, 2)}


class Sums(nn.Module):
    """Adds a number to a number in every step."""

    def __init__(self, first: object, more: object) -> None:
        super().__init__()
        self.t, self.more = first, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.t = self.t + self.more
        return x + self.t


@torch.no_grad()
@pytest.mark.case("A7")
@pytest.mark.parametrize(
    ("first", "more", "dtype", "sum_of_steps"),
    [
        (0.0, 0.002, "float64", 6.0),
        (np.float64(0.0), 0.002, "float64", 6.0),
        (np.zeros(()), 0.002, "float64", 6.0),
        (0, 7, "int64", 21_000),
        (2**40, 1, "int64", 2**40 + 3000),
        (np.int32(0), 7, "int32", 21_000),
    ],
)
def test_a_number_keeps_all_its_bits(first, more, dtype, sum_of_steps) -> None:
    step = lift(Sums(first, more), X, states=["t"])
    assert [s.dtype for s in step.step_spec().states] == [dtype]
    states = step.initial_states()
    for _ in range(3000):
        states = step.step(X, states).states
    assert abs(states["t"].item() - sum_of_steps) < 1e-9
    assert states["t"].dtype == getattr(torch, dtype)


@pytest.mark.slow
@pytest.mark.case("A7")
def test_a_clock_is_right_after_300_000_steps(tmp_path: Path, seal_model) -> None:
    made = runpy.run_path(str(Path(__file__).parents[1] / "cases/models.py"))["slow_clock"]()
    x = np.zeros((1, 2), np.float32)
    with Session.open(seal_model(tmp_path / "b", made).path) as session:
        for _ in range(300_000):
            y = session.step(x=x)["y"]
        assert abs(float(session.state("t")) - 600.0) < 1e-6
        assert abs(float(y[0, 0]) - math.sin(600.0)) < 1e-4  # float32 knows 600 to 3e-5


@torch.no_grad()
def test_a_number_that_becomes_a_tensor_is_a_state_in_the_form_it_takes() -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level, self.mean = 0.5, 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.level = 0.9 * self.level + 0.1 * x
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            return self.level + self.mean

    step, alone = lift(Level(), X, states=["level", "mean"]), Level()
    states = step.initial_states()
    assert states["level"].tolist() == [[0.5, 0.5]]
    assert {s.name: s.dtype for s in step.step_spec().states} == {
        "level": "float32",
        "mean": "float32",
    }
    for _ in range(20):
        result = step.step({"x": torch.ones(1, 2)}, states)
        states = result.states
        torch.testing.assert_close(result.outputs["output"], alone(torch.ones(1, 2)))


def test_numbers_that_no_bundle_can_hold_are_refused_by_name() -> None:
    with pytest.raises(TraceError, match="'t' cannot be a state"):
        lift(Sums(0j, 1.0), X, states=["t"])
    with pytest.raises(StategateError, match="complex64"):
        lift(Sums(torch.zeros(1, dtype=torch.complex64), 1.0), X, states=["t"])
