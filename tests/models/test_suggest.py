"""B12: the first hint names what a module remembers, and nothing else of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stategate.models
from stategate.models.lifting.suggest import offer
from stategate.models.load import _checked as checked

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Act(nn.Module):
    """As LeRobot's ACT: forward is the loss, select_action takes from a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 30)
        self._action_queue: deque = deque(maxlen=10)

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        return (self.net(batch["observation.state"]) - batch["action"]).square().mean(), {}

    def select_action(self, batch: dict) -> Tensor:
        if len(self._action_queue) == 0:
            actions = self.net(batch["observation.state"]).reshape(1, 10, 3)
            self._action_queue.extend(actions.transpose(0, 1))
        return self._action_queue.popleft()


class MinGru(nn.Module):
    """As minGRU-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x, prev_hidden=None, return_next_prev_hidden=False):
        h, g = self.both(x).chunk(2, dim=-1)
        h = g.sigmoid() * h + (1 - g.sigmoid()) * (0 if prev_hidden is None else prev_hidden)
        return (self.out(h), h) if return_next_prev_hidden else self.out(h)


class Agent(nn.Module):
    """As CleanRL's: no forward at all."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lstm, self.actor = nn.Linear(6, 16), nn.LSTM(16, 8), nn.Linear(8, 3)

    def get_action(self, x, lstm_state):
        y, lstm_state = self.lstm(self.network(x)[None], lstm_state)
        return self.actor(y[0]), lstm_state


class Buffers(nn.Module):
    """A memory, beside constants, a copy of the input and a picture that is drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(6, 8), nn.Linear(8, 2)
        self.register_buffer("h", torch.zeros(1, 8))
        self.register_buffer("mean", torch.zeros(6))
        self.last = self.attention = self.unset = None

    def forward(self, x: Tensor) -> Tensor:
        self.last, self.attention = x, x.softmax(-1)
        self.h = self.cell(x - self.mean, self.h)
        return self.out(self.h)


class Ltc(nn.Module):
    """As ncps: parameters and wiring as tensors, the state an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.wiring = nn.Parameter(torch.rand(4, 4)), torch.ones(4, 4)
        self.register_buffer("sparsity", torch.ones(4))
        self.into = nn.Linear(6, 4)

    def forward(self, inputs, hx=None, timespans=1.0):
        hx = torch.zeros(len(inputs), 4) if hx is None else hx
        hx = hx + 0.1 * timespans * torch.tanh(self.into(inputs) + hx @ (self.inner * self.wiring))
        return hx * self.sparsity, hx


class Kalman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        constants = {"F": torch.eye(4), "H": torch.eye(2, 4), "Q": 0.01 * torch.eye(4)}
        for name, value in {**constants, "x": torch.zeros(1, 4), "P": torch.eye(4)}.items():
            self.register_buffer(name, value)
        self.gain = None

    def forward(self, z: Tensor) -> Tensor:
        x, P = self.x @ self.F.T, self.F @ self.P @ self.F.T + self.Q
        self.gain = P @ self.H.T @ torch.linalg.inv(self.H @ P @ self.H.T + torch.eye(2))
        self.x = x + (z - x @ self.H.T) @ self.gain.T
        self.P = (torch.eye(4) - self.gain @ self.H) @ P
        return self.x @ self.H.T


class Language(nn.Module):
    """As models of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def forward(self, input_ids=None, past_key_values=None, use_cache=None):
        return {"logits": self.head(self.embed(input_ids))}


class Stepper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 7)

    def forward(self, x):
        return self.rnn(x)[0]

    def step(self, x, state):
        return self.rnn(x, state)


class Fabric(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module

    def forward(self, *args, **kwargs):
        return self._forward_module(*args, **kwargs)


@pytest.mark.case("B12")
@pytest.mark.parametrize(
    ("module", "named", "unnamed"),
    [
        (
            Act(),
            [
                "{'batch': {'observation.state': torch.zeros(1, ...)}}, states=['_action_queue']",
                ".select_action(batch)",
                "select_action takes a dict of tensors as batch",
            ],
            ["net"],
        ),
        (MinGru(), ["'x': torch.zeros(1, 8)", "prev_hidden", "return_next_prev_hidden=True"], []),
        (Agent(), ["module.get_action(x, lstm_state)", "(torch.zeros(1, 1, 8), torch"], []),
        (Buffers(), ["lift(module, {'x': torch.zeros(1, 6)}, states=['h'])"], ["hidden"]),
        (lambda: torch.compile(Buffers()), ["lift(module._orig_mod, ", "states=['h']"], ["mean"]),
        (nn.DataParallel(Buffers()), ["lift(module.module, ", "states=['h']"], ["attention"]),
        (Fabric(Buffers()), ["lift(module._forward_module, ", "states=['h']"], ["last"]),
        (Ltc(), ["{'inputs': torch.zeros(1, 6)}, hidden={'hx': None}"], ["wiring", "sparsity"]),
        (Kalman(), ["states=['x', 'P']"], ["'F'", "'H'", "gain"]),
        (Language(), ["past_key_values", "use_cache=True", "input_ids"], ["embed"]),
        (Stepper(), ["module.step(x, state)", "hidden={'state': torch.zeros("], []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_hint_names_the_memory_alone(
    module: nn.Module | Callable[[], nn.Module], named: list[str], unnamed: list[str]
) -> None:
    module = module if isinstance(module, nn.Module) else module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    said = offer(module)
    for text in named:
        assert text in said
    for text in (*unnamed, "ONNX Runtime alone"):
        assert text not in said
    for name, tensor in module.state_dict().items():  # copies were called
        assert torch.equal(tensor, before[name])


@pytest.mark.case("B12")
def test_the_hint_for_buffers_works_when_it_is_pasted() -> None:
    module = Buffers()
    source = offer(module).removeprefix("return ").partition(";")[0]
    step = eval(source, {"stategate": stategate, "torch": torch, "module": module})
    assert [state.name for state in step.step_spec().states] == ["h"]


def test_only_what_was_called_and_did_not_remember_is_said_to_have_no_memory() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.features = nn.Linear(3, 2), None

        def forward(self, x):
            self.features = self.net(x)
            return self.features * 2

    class Strange(nn.Module):
        def forward(self, words: str):
            return words.upper()

    total = [0.0]

    class Closure(nn.Module):
        def forward(self, x):
            total[0] += 1.0
            return x + total[0]

    assert "ONNX Runtime alone" in offer(Cached())
    assert "depend on earlier calls" in offer(Closure())
    assert "ONNX Runtime alone" not in offer(Strange())


def test_a_step_model_in_a_wrapper_is_taken_for_what_it_is(tiny: nn.Module) -> None:
    assert checked(nn.DataParallel(tiny), "m", "m.py:m", None).module is tiny
