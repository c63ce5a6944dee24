"""Memory and outputs of one form are told apart, or asked for."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models import lift

pytestmark = pytest.mark.case("B11")

CASES = runpy.run_path(str(Path(__file__).parents[1] / "cases/models.py"))
X, Z = {"x": torch.zeros(1, 4)}, torch.zeros(1, 4)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.cell, self.lstm, self.out = nn.GRUCell(4, 4), nn.LSTMCell(4, 4), nn.Linear(4, 4)


class NamedFirst(Base):
    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        new_carry = self.cell(x, carry)
        y = torch.tanh(self.out(new_carry))
        return new_carry, y


class NamedLast(Base):
    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        carry = self.cell(x, carry)
        return torch.tanh(self.out(carry)), carry


class Swapped(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.lstm(x, (h, c))
        y = self.out(h)
        return y, c, h


class Same(Base):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out = self.cell(x, state)
        return out, out


class Stale(Base):
    """The name of the argument is given back, but holds what was handed in."""

    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        return carry, self.cell(x, carry)


class Nameless(Base):
    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(x, carry), self.out(self.cell(x, carry))


class FormTells(Base):
    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        z = self.cell(x, carry)
        return z, z.sum(-1)


def memory_after(step: nn.Module, name: str) -> Tensor:
    first = {name: torch.full_like(t, 0.5) for name, t in step.initial_states().items()}
    return step.step({"x": torch.ones(1, 4)}, first).states[name]


@torch.no_grad()
@pytest.mark.parametrize(
    ("module", "name"),
    [(NamedFirst(), "carry"), (NamedLast(), "carry"), (FormTells(), "carry"), (Same(), "state")],
)
def test_names_and_forms_tell_which_output_is_the_memory(module, name) -> None:
    wanted = module.cell(torch.ones(1, 4), torch.full((1, 4), 0.5))
    assert torch.equal(memory_after(lift(module, X, hidden={name: Z}), name), wanted)


@torch.no_grad()
def test_h_and_c_are_not_exchanged() -> None:
    step = lift(Swapped(), X, hidden={"h": Z, "c": Z})
    x, half = torch.ones(1, 4), torch.full((1, 4), 0.5)
    h, c = step.lifted.lstm(x, (half, half))
    assert torch.equal(memory_after(step, "h"), h) and torch.equal(memory_after(step, "c"), c)


@torch.no_grad()
@pytest.mark.parametrize("module", [CASES["CarryFirst"](), Nameless(), Stale()])
def test_what_cannot_be_distinguished_is_asked_for(module) -> None:
    size = 8 if hasattr(module.out, "in_features") and module.out.in_features == 8 else 4
    hidden = {"carry": torch.zeros(1, size)}
    with pytest.raises(TraceError, match="more than one thing that forward returns") as problem:
        lift(module, X, hidden=hidden)
    said = str(problem.value).partition("lift(..., returns=")[2].partition(")")[0]
    # A guess is offered where a name bears it out, and can be pasted; else only what to write.
    assert (said == "['carry', 'output1']") == isinstance(module, CASES["CarryFirst"])
    assert (said == "['output0', 'output1']") == (not isinstance(module, CASES["CarryFirst"]))
    x, half = torch.ones(1, 4), torch.full((1, size), 0.5)
    for place, returns in enumerate((["carry", "y"], ["y", "carry"])):
        step = lift(module, X, hidden=hidden, returns=returns)
        assert [t.name for t in step.step_spec().outputs] == ["y"]
        assert torch.equal(memory_after(step, "carry"), module(x, half)[place])


@pytest.mark.parametrize("returns", [["carry"], ["y", "z"], ["y", "carry", "z"]])
def test_names_that_do_not_fit_are_refused(returns) -> None:
    with pytest.raises(TraceError, match="returns= is not what forward returns"):
        lift(NamedLast(), X, hidden={"carry": Z}, returns=returns)
