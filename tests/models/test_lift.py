from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import lift
from stategate.models.load import load_model

X = {"x": torch.zeros(1, 4)}
STREAM = torch.randn(40, 1, 4, generator=torch.Generator().manual_seed(3))


class Counter(nn.Module):
    """Counts in int64, and remembers in a bool whether the last input was positive."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, 1, dtype=torch.int64))
        self.flag = torch.zeros(1, 1, dtype=torch.bool)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        y = x * torch.where(self.flag, 1.5, 0.5) + torch.sin(self.count)
        self.flag = x[:, :1] > 0
        return y


class Policy(nn.Module):
    """Memory of every kind: in place, by assignment, in an inner module, nested, and a number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.mix, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4, num_layers=2)
        self.inner = Counter()
        self.register_buffer("h", torch.ones(1, 4))
        self.register_buffer("scratch", torch.zeros(1, 4), persistent=False)
        self.hidden = None
        self.mem = {"a": torch.zeros(1, 2)}
        self.past = deque([torch.zeros(1, 4)] * 3, maxlen=3)
        self.ticks = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h.mul_(0.9).add_(0.1 * self.mix(x))
        self.scratch = self.scratch * 0.5 + x
        y, self.hidden = self.lstm(x[None], self.hidden)
        self.mem["a"] = 0.5 * self.mem["a"] + x[:, :2]
        self.past.append(x)
        self.ticks += 1
        y = y[0] + self.inner(self.h) + self.scratch + self.past[0]
        return y + self.mem["a"].sum(-1, keepdim=True) + self.ticks % 7


NAMES = ["h", "scratch", "inner.count", "inner.flag", "mem", "past", "ticks", "hidden"]


def lifted_policy():
    policy = Policy()
    policy.hidden = (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
    return lift(policy, X, states=NAMES, outputs=["y"], session_axes={"hidden": 1})


@torch.no_grad()
def test_a_lifted_module_remembers_what_it_remembers_alone() -> None:
    step, alone = lifted_policy(), Policy().eval()
    states = step.initial_states()
    for x in STREAM:
        result = step.step({"x": x}, states)
        states = result.states
        assert torch.equal(result.outputs["y"], alone(x))
    assert torch.equal(states["h"], alone.h)
    assert torch.equal(states["scratch"], alone.scratch)
    assert torch.equal(states["inner.count"], alone.inner.count)
    assert torch.equal(states["inner.flag"], alone.inner.flag)
    assert torch.equal(states["mem['a']"], alone.mem["a"])
    assert torch.equal(states["past[2]"], alone.past[2])
    assert torch.equal(states["hidden[1]"], alone.hidden[1].movedim(1, 0))
    assert int(states["ticks"]) == alone.ticks == len(STREAM)


def test_its_states_have_the_users_names_and_forms() -> None:
    spec = lifted_policy().step_spec()
    assert {s.name: (s.dtype, s.shape) for s in spec.states} == {
        "h": ("float32", (1, 4)),
        "scratch": ("float32", (1, 4)),
        "inner.count": ("int64", (1, 1)),
        "inner.flag": ("bool", (1, 1)),
        "mem['a']": ("float32", (1, 2)),
        **{f"past[{i}]": ("float32", (1, 4)) for i in range(3)},
        "ticks": ("int64", ()),
        "hidden[0]": ("float32", (1, 2, 4)),
        "hidden[1]": ("float32", (1, 2, 4)),
    }
    assert [t.name for t in spec.outputs] == ["y"] and spec.gates == ()


@torch.no_grad()
def test_a_step_changes_neither_the_module_nor_its_arguments() -> None:
    step = lifted_policy()
    states = step.initial_states()
    kept = {name: tensor.clone() for name, tensor in states.items()}
    buffer = step.lifted.h
    for _ in range(3):
        step.step({"x": STREAM[0]}, states)
    assert all(torch.equal(states[name], kept[name]) for name in kept)
    assert step.lifted.h is buffer and torch.equal(buffer, torch.ones(1, 4))
    assert step.lifted.ticks == 0 and len(step.lifted.past) == 3
    assert not step.lifted.training


class Recurrent(nn.Module):
    def __init__(self, cell: str, flat: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.rnn = getattr(nn, cell)(4, 6)
        self.flat = flat

    def forward(self, x: torch.Tensor, hidden=None, cell=None):
        if self.flat:
            y, (h, c) = self.rnn(x[None], (hidden, cell))
            return y[0], y.sum(-1), h, c
        y, hidden = self.rnn(x[None], hidden)
        return y[0], hidden


Z = torch.zeros(1, 1, 6)


@pytest.mark.parametrize(
    ("module", "hidden", "outputs", "states"),
    [
        (Recurrent("GRU"), {"hidden": Z}, (), ["hidden"]),
        (Recurrent("LSTM"), {"hidden": (Z, Z)}, (), ["hidden[0]", "hidden[1]"]),
        (Recurrent("LSTM", True), {"hidden": Z, "cell": Z}, ["y", "sum"], ["hidden", "cell"]),
    ],
)
@torch.no_grad()
def test_memory_that_is_handed_in_and_returned_becomes_states(
    module, hidden, outputs, states
) -> None:
    step = lift(module, X, hidden=hidden, outputs=outputs)
    assert [s.name for s in step.step_spec().states] == states
    assert [t.name for t in step.step_spec().outputs] == (outputs or ["output"])
    memory, sequence = step.initial_states(), []
    for x in STREAM:
        result = step.step({"x": x}, memory)
        memory = result.states
        sequence.append(next(iter(result.outputs.values())))
    expected, _ = module.rnn(STREAM)
    torch.testing.assert_close(torch.stack(sequence), expected, atol=1e-6, rtol=0)


def test_outputs_in_a_dict_bring_their_names() -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.zeros(1, 4)

        def forward(self, x):
            self.h = self.h + x
            return {"action": self.h * 2.0, "value": self.h.sum(-1)}

    assert [t.name for t in lift(Gives(), X, states="h").step_spec().outputs] == ["action", "value"]
    only = lift(Gives(), X, states=["h"], outputs=["value"])
    assert list(only.step(X, only.initial_states()).outputs) == ["value"]


def test_a_mapping_gives_first_values_and_autograd_history_is_left_behind() -> None:
    policy = Policy()
    policy(STREAM[0])  # with gradients: what it holds now has a history, and cannot be copied
    step = lift(policy, X, states={name: _held(policy, name) for name in NAMES})
    assert int(step.initial_states()["inner.count"]) == 1
    assert not any(t.requires_grad for t in step.initial_states().values())


@pytest.mark.case("B10")
def test_a_first_value_that_the_module_does_not_start_with_is_refused_with_a_remedy() -> None:
    policy = Policy()
    held = {"h": torch.full((1, 4), 0.25), **{n: _held(policy, n) for n in NAMES[1:-1]}}
    held["hidden"] = (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))  # as nn.LSTM starts from None
    with pytest.raises(TraceError, match="does not start with these first values") as problem:
        lift(policy, X, states=held)
    remedy = str(problem.value).partition("what to do: ")[2].partition(" takes")[0]
    step = eval(f"lift(Policy(), X, {remedy})")
    assert torch.equal(step.initial_states()["h"], torch.ones(1, 4)) and not step.has_first_step


def _held(module: nn.Module, name: str):
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)


class Breaks(nn.Module):
    """A memory that is sound; subclasses break one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 4))
        self.weight = nn.Parameter(torch.ones(4))
        self.k: torch.Tensor | None = None
        self.rows: list[torch.Tensor] = []

    def forward(self, x):
        self.h = self.h + x * self.weight
        return self.h * 1.0


class Grows(Breaks):
    def forward(self, x):
        self.h = torch.cat([self.h, x])
        return self.h.mean(0, keepdim=True)


class GrowsFromNone(Breaks):
    def forward(self, x):
        self.k = x if self.k is None else torch.cat([self.k, x])
        return self.k.mean(0, keepdim=True)


class ListGrows(Breaks):
    def forward(self, x):
        self.rows.append(x)
        return torch.stack(self.rows).sum(0)


class Doubles(Breaks):
    def forward(self, x):
        self.h = (self.h + x).double()
        return x * 1.0


class Remembers(Breaks):
    def forward(self, x):
        self.k = x if self.k is None else self.k * 0.5 + x
        return self.k * 2.0


class NeedsReset(Breaks):
    def forward(self, x):
        self.k = self.k + x
        return self.k * 1.0


class Returns(Breaks):
    def forward(self, x):
        self.h = self.h + x
        return self.h * 1.0, None


KV = "TRIM-KV"


@pytest.mark.parametrize(
    ("module", "arguments", "finding"),
    [
        (Grows(), {"states": ["h"]}, rf"'h' does not keep its shape[\s\S]*\(2, 4\)[\s\S]*{KV}"),
        (GrowsFromNone(), {"states": ["k"]}, rf"'k' is read before it has a value[\s\S]*{KV}"),
        (ListGrows(), {"states": ["rows"]}, rf"'rows' is read before[\s\S]*{KV}"),
        (Grows(), {"states": {"h": torch.zeros(1, 0, 4)}}, rf"'h' cannot be a state[\s\S]*{KV}"),
        (Doubles(), {"states": ["h"]}, r"does not keep its shape and dtype[\s\S]*float64"),
        (NeedsReset(), {"states": ["k"]}, r"None before the first step[\s\S]*resets"),
        (Breaks(), {"states": ["hh"]}, "no buffer or attribute of this name[\\s\\S]*h, k"),
        (Breaks(), {"states": ["inner.h"]}, "has no 'inner'"),
        (Breaks(), {"states": ["weight"]}, "parameters are weights[\\s\\S]*register_buffer"),
        (Breaks(), {}, "does not know what the module remembers[\\s\\S]*h, k"),
        (Breaks(), {"states": ["h"], "hidden": {"hx": Z}}, "unexpected keyword argument 'hx'"),
        (
            Breaks(),
            {"states": ["h"], "session_axes": {"g": 1}},
            "session_axes names what is no state",
        ),
        (Breaks(), {"states": ["h"], "session_axes": {"h": 1}}, "axis 1 of 'h'"),
        (Breaks(), {"states": ["h"], "outputs": ["a", "b"]}, "1 outputs, and names for 2"),
        (Returns(), {"states": ["h"], "outputs": ["a", "b"]}, "b: None"),
        (Returns(), {"states": ["h"]}, "every output of forward needs a name"),
        (Recurrent("GRU"), {"hidden": {"hidden": Z, "cell": Z}}, "does not return its memory"),
        (Recurrent("LSTM"), {"hidden": {"hidden": Z}}, "test_lift.py:[0-9]+ in forward"),
    ],
)
def test_what_cannot_be_lifted_is_refused_with_the_remedy(module, arguments, finding) -> None:
    with pytest.raises(TraceError, match=finding):
        lift(module, X, **arguments)


def test_wrong_example_inputs_are_refused() -> None:
    with pytest.raises(TraceError, match="missing a required argument: 'x'"):
        lift(Breaks(), {"obs": torch.zeros(1, 4)}, states=["h"])
    with pytest.raises(TraceError, match="'x' is no tensor"):
        lift(Breaks(), {"x": 1.0}, states=["h"])  # type: ignore[dict-item]
    with pytest.raises(TraceError, match="fails on its example inputs[\\s\\S]*test_lift.py"):
        lift(Breaks(), {"x": torch.zeros(1, 3)}, states=["h"])


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = Breaks()
    module.file = Path(__file__).open()  # noqa: SIM115
    with module.file, pytest.raises(TraceError, match="cannot be copied"):
        lift(module, X, states=["h"])


MODULE = """
import torch
from torch import nn
from stategate.models import lift

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, hidden=None):
        self.h = self.h + self.norm(x)
        return self.h

def unset():
    return lift(Mine(), {"x": torch.zeros(1, 4)}, states=["g"])

def fails():
    return lift(1 / 0)
"""


def test_a_plain_module_is_offered_the_call_that_may_fit_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    with pytest.raises(TraceError) as problem:
        load_model(f"{path}:Mine")
    said = str(problem.value)
    assert "step_spec()" in said and "rsl_rl" in said and "docs/guides/bring-your-own.md" in said
    hint = "lift(module, {'x': torch.zeros(1, ...)}, states=['h'])"
    assert hint in said
    path.write_text(
        f"{MODULE}\ndef pasted():\n    module = Mine()\n    return {hint}\n".replace("...", "4")
    )
    assert [s.name for s in load_model(f"{path}:pasted").model.step_spec().states] == ["h"]


def test_what_lift_refuses_in_a_factory_is_said_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    with pytest.raises(TraceError, match=r"^the module has no buffer or attribute"):
        load_model(f"{path}:unset")
    with pytest.raises(TraceError, match=rf"ZeroDivisionError[\s\S]*{path}:\d+ in fails"):
        load_model(f"{path}:fails")
