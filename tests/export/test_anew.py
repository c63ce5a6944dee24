"""Recurrent parts that are called without a hidden state begin anew in every step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stategate
from stategate.contract.errors import UndeclaredStateError
from stategate.models import lift


class Forgets(nn.Module):
    """Remembers an average, and forgets what its recurrent part knew."""

    def __init__(self, kind: str, **options: bool) -> None:
        super().__init__()
        self.rnn, self.average = getattr(nn, kind)(4, 4, **options), torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)
        y = y[0] if isinstance(y, tuple) else y
        self.average = 0.9 * self.average + y.reshape(-1, y.shape[-1])[-1:, :4]
        return self.average


class Mended(nn.Module):
    """As the remedy says."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.hidden = nn.LSTM(4, 4, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.rnn(x, self.hidden)
        return y


@pytest.mark.case("B1")
@pytest.mark.parametrize(
    ("kind", "options", "finding"),
    [
        ("LSTM", {"batch_first": True}, r"each step: rnn[\s\S]*y, self.hidden = self.rnn\(x"),
        ("GRU", {}, r"GRU called without[\s\S]*states=\[\"hidden\"\]"),
        ("RNN", {"bidirectional": True}, r"both directions[\s\S]*reads the future"),
        ("LSTMCell", {}, r"and self.hidden = self.rnn\(x, self.hidden\)"),
    ],
)
def test_a_part_that_forgets_after_every_step_is_refused_by_name(
    kind, options, finding, tmp_path: Path
) -> None:
    shape = (1, 4) if kind.endswith("Cell") else (1, 1, 4)
    step = lift(Forgets(kind, **options), {"x": torch.zeros(shape)}, states=["average"])
    with pytest.raises(UndeclaredStateError, match=finding):
        stategate.make(step, tmp_path / "b", steps=5)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_the_remedy_works_and_a_window_is_taken_with_a_note(tmp_path: Path) -> None:
    step = lift(Mended(), {"x": torch.zeros(1, 1, 4)}, states=["hidden"])
    assert stategate.make(step, tmp_path / "a", steps=10).manifest.verification.notes == ()
    window = Forgets("LSTM", batch_first=True)
    step = lift(window, {"x": torch.zeros(1, 6, 4)}, states=["average"])
    (note,) = stategate.make(step, tmp_path / "b", steps=10).manifest.verification.notes
    assert note.startswith("rnn begins anew in every step and reads 6 steps of time")


def test_an_attribute_that_the_first_call_makes_is_absent_before_it(tmp_path: Path) -> None:
    class Lazy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "past"):
                self.past = x - 1.0
            self.past = 0.5 * self.past + x
            return self.past

    module = Lazy()
    step = lift(module, {"x": torch.zeros(1, 4)}, states=["past"])
    assert step.has_first_step
    stategate.make(step, tmp_path / "b", steps=10)
