"""The shapes of `make bench-native` that are no zoo model: weights from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stategate.models import lift
from stategate.models.lifting.lift import Lifted


class Policy(nn.Module):
    """One step of an LSTM or GRU, and a dense layer after it."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], inputs: int, units: int, outputs: int):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = cell(inputs, units), nn.Linear(units, outputs)
        zeros = torch.zeros(1, 1, units)
        self.hidden = (zeros, zeros.clone()) if cell is nn.LSTM else zeros

    def forward(self, x: Tensor) -> Tensor:
        """``x`` is ``(1, inputs)``."""
        y, self.hidden = self.rnn(x[None], self.hidden)
        head: Tensor = self.head(y[0])
        return head


class ConvGru(nn.Module):
    """A convolutional GRU of 16 channels on pictures of 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates = nn.Conv2d(3 + 16, 2 * 16, 3, padding=1)
        self.candidate = nn.Conv2d(3 + 16, 16, 3, padding=1)
        self.hidden = torch.zeros(1, 16, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` is ``(1, 3, 64, 64)``; gives the new hidden state."""
        h = self.hidden
        reset, update = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat([x, reset * h], 1)).tanh()
        self.hidden = (1 - update) * candidate + update * h
        return self.hidden.mean((2, 3))


def _lifted(module: nn.Module, x: Tensor) -> Lifted:
    return lift(module.eval(), {"x": x}, states=["hidden"], outputs=["y"])


def lstm_64() -> Lifted:
    """LSTM 32 -> 64 and a dense layer of 8."""
    return _lifted(Policy(nn.LSTM, 32, 64, 8), torch.zeros(1, 32))


def gru_64() -> Lifted:
    """GRU 32 -> 64 and a dense layer of 8."""
    return _lifted(Policy(nn.GRU, 32, 64, 8), torch.zeros(1, 32))


def lstm_256() -> Lifted:
    """LSTM 48 -> 256 and a dense layer of 12."""
    return _lifted(Policy(nn.LSTM, 48, 256, 12), torch.zeros(1, 48))


def gru_256() -> Lifted:
    """GRU 48 -> 256 and a dense layer of 12."""
    return _lifted(Policy(nn.GRU, 48, 256, 12), torch.zeros(1, 48))


def conv_gru() -> Lifted:
    """A convolutional GRU on pictures."""
    return _lifted(ConvGru(), torch.zeros(1, 3, 64, 64))
