"""Small modules of README.md; each factory gives what `stategate export FILE:NAME` takes."""

import torch
from torch import nn

from stategate.models import lift


class InfOutput(nn.Module):
    """A1: the state stays finite, the action does not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, x):
        self.h.mul_(0.5).add_(torch.tanh(x))
        return 1 / (self.h - 1.0)


class NanGolden(nn.Module):
    """A2: half of the outputs of random inputs are NaN."""

    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 2))

    def forward(self, x):
        self.h.mul_(0.5).add_(torch.tanh(x))
        return torch.log(x)


class Leaky(nn.Module):
    """A6: leaky integrators; in silence their state becomes subnormal after some 8,700 steps."""

    def __init__(self, n=256, decay=0.99):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(8, n, bias=False), nn.Linear(n, 4, bias=False)
        self.decay = decay
        self.register_buffer("s", torch.zeros(1, n))

    def forward(self, x):
        self.s.mul_(self.decay).add_(self.into(x))
        return self.out(self.s)


class SlowClock(nn.Module):
    """A7: a policy that keeps its own time in a Python float."""

    def __init__(self):
        super().__init__()
        self.t = 0.0

    def forward(self, x):
        self.t = self.t + 0.002
        return torch.sin(x * 0 + self.t)


class DroppedState(nn.Module):
    """B5: the next hidden state is computed and forgotten."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 8)
        self.register_buffer("h", torch.zeros(1, 1, 8))

    def forward(self, x):
        y, _ = self.gru(x[None], self.h)
        return y[0]


class GruPolicy(nn.Module):
    """C1: a recurrent policy as most have it."""

    def __init__(self):
        super().__init__()
        self.gru, self.act = nn.GRU(6, 16, num_layers=2), nn.Linear(16, 3)

    def forward(self, x, hidden):
        y, hidden = self.gru(x[None], hidden)
        return self.act(y[0]), hidden


class Latch(nn.Module):
    """B0: beyond 50 N the policy must stop until somebody resets it; `tripped` was forgotten."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.act = nn.GRUCell(6, 16), nn.Linear(16, 3)
        self.register_buffer("h", torch.zeros(1, 16))
        self.register_buffer("tripped", torch.zeros(1, 1, dtype=torch.bool))

    def forward(self, force):
        self.tripped = self.tripped | (force.abs().amax(1, keepdim=True) > 50.0)
        self.h = self.gru(force / 10.0, self.h)
        return torch.where(self.tripped, torch.zeros(1, 3), self.act(self.h))


class LazyEma(nn.Module):
    """B10: the first call sets the filter to the measurement."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.avg, self.out = None, nn.Linear(4, 2)

    def forward(self, x):
        self.avg = x.clone() if self.avg is None else 0.98 * self.avg + 0.02 * x
        return self.out(self.avg)


class CarryFirst(nn.Module):
    """B11: carry, y in the order of flax; y has the carry's shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = nn.GRUCell(4, 8), nn.Linear(8, 8)

    def forward(self, x, carry):
        carry = self.cell(x, carry)
        return carry, torch.tanh(self.out(carry))


def latch():
    return lift(Latch(), {"force": torch.zeros(1, 6)}, states=["h"], outputs=["action"])


def lazy_ema():
    return lift(
        LazyEma(), {"x": torch.zeros(1, 4)}, states={"avg": torch.zeros(1, 4)}, outputs=["y"]
    )


def carry_first():
    return lift(
        CarryFirst(), {"x": torch.zeros(1, 4)}, hidden={"carry": torch.zeros(1, 8)}, outputs=["y"]
    )


def inf_output():
    return lift(InfOutput(), {"x": torch.zeros(1, 2)}, states=["h"], outputs=["action"])


def nan_golden():
    return lift(NanGolden(), {"x": torch.ones(1, 2)}, states=["h"], outputs=["action"])


def leaky():
    return lift(Leaky(), {"x": torch.zeros(1, 8)}, states=["s"], outputs=["y"])


def slow_clock():
    return lift(SlowClock(), {"x": torch.zeros(1, 2)}, states=["t"], outputs=["y"])


def dropped_state():
    return lift(DroppedState(), {"x": torch.zeros(1, 4)}, states=["h"], outputs=["y"])


def gru_policy():
    return lift(
        GruPolicy(),
        {"x": torch.zeros(1, 6)},
        hidden={"hidden": torch.zeros(2, 1, 16)},
        outputs=["action"],
    )


def half_policy():
    return lift(
        GruPolicy().half(),
        {"x": torch.zeros(1, 6).half()},
        hidden={"hidden": torch.zeros(2, 1, 16).half()},
        outputs=["action"],
    )
