"""Mamba-3 against the complex state of its paper, which turns where this one turns B and C."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from stategate.contract.errors import SpecError
from stategate.models.memories.mamba3 import PUBLISHED, Mamba3Config, Mamba3Layer

HEADS, VALUES, COLUMNS, PAIRS = 3, 5, 8, 2


def layer(decay: Literal["softplus", "heavy_tail"] = "heavy_tail") -> Mamba3Layer:
    torch.manual_seed(6)
    mixer = Mamba3Layer(Mamba3Config(12, HEADS, VALUES, COLUMNS, PAIRS, decay, 1e-4, 1e-5))
    with torch.no_grad():
        mixer.in_proj.weight.mul_(3.0)
        for name, weight in mixer.named_parameters():
            if not name.endswith("proj.weight"):
                weight.uniform_(-1.5, 1.5)
    return mixer.double()


def complex_step(mixer: Mamba3Layer, u: Tensor, is_open: Tensor, state: tuple) -> tuple:
    """The trapezoidal rule of a complex diagonal system, one pair of columns a number.

    A step that does not write decays and turns all the same.
    """
    h, B_last, x_last = state
    widths = [HEADS * VALUES] * 2 + [COLUMNS] * 2 + [HEADS] * 3 + [PAIRS]
    z, x, B, C, dt, a, mix, angle = mixer.in_proj(u)[0].split(widths)
    dt, mix = softplus(dt + mixer.dt_bias), torch.sigmoid(mix)
    tail = torch.where(a >= 0, 1 + a, 1 / (1 - a)) if mixer.config.decay == "heavy_tail" else None
    A = -(softplus(a) if tail is None else tail).clamp(min=1e-4)
    speed = torch.zeros(HEADS, COLUMNS // 2, dtype=torch.float64)
    speed[:, :PAIRS] = math.pi * torch.tanh(angle)
    factor = torch.exp(dt[:, None] * torch.complex(A[:, None].expand_as(speed), -speed))

    def normed(part: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        part = part / (part.square().mean() + 1e-5).sqrt() * weight + bias[:, 0]
        return torch.view_as_complex(part.reshape(HEADS, -1, 2).contiguous())

    B = normed(B, mixer.B_norm.weight, mixer.B_bias)
    C = normed(C, mixer.C_norm.weight, mixer.C_bias)
    x = x.reshape(HEADS, VALUES)
    before = (
        ((1 - mix) * dt)[:, None, None] * factor[..., None] * B_last[..., None] * x_last[:, None]
    )
    write = before + (mix * dt)[:, None, None] * B[..., None] * x[:, None]
    h = factor[..., None] * h + torch.where(is_open[:, None, None], write, 0.0)
    y = (C.conj()[..., None] * h).sum(1).real + mixer.D[:, None] * x
    out = mixer.out_proj(y.flatten() * z * torch.sigmoid(z))
    return out, (h, B, x), write.abs().square().sum((1, 2)).sqrt()


@torch.no_grad()
@pytest.mark.parametrize(
    ("decay", "level", "open_share"),
    [("heavy_tail", 0.0, 1.0), ("softplus", 0.0, 1.0), ("heavy_tail", 2.0, 0.6)],
)
def test_a_layer_is_the_complex_system_of_the_paper_and_lacks_what_it_skips(
    decay: Literal["softplus", "heavy_tail"], level: float, open_share: float
) -> None:
    mixer, threshold, opened = layer(decay), torch.tensor([level]), 0
    states = [torch.zeros(s.shape, dtype=torch.float64) for s in mixer.config.states()]
    states[2] = mixer.initial_states()["turn"].double()
    zero = torch.zeros(HEADS, COLUMNS // 2, dtype=torch.complex128)
    right = (zero[..., None].expand(-1, -1, VALUES), zero, torch.zeros(HEADS, VALUES))
    for u in torch.randn(80, 1, 12, dtype=torch.float64, generator=torch.manual_seed(8)):
        out, after, gate = mixer.step(u, tuple(states), threshold)
        is_open = gate > level
        expected, right, missing = complex_step(mixer, u, is_open[0], right)
        torch.testing.assert_close(out[0], expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gate[0], missing, atol=1e-6, rtol=1e-9)
        assert torch.equal(after[0][~is_open], states[0][~is_open])
        states, opened = list(after), opened + int(is_open.sum())
    assert abs(opened / (80 * HEADS) - open_share) < 0.25


@torch.no_grad()
@pytest.mark.parametrize("level", [0.0, 2.0, 1e9], ids=["every write", "some", "none"])
def test_a_chunk_is_as_many_steps_and_padding_changes_nothing(level: float) -> None:
    mixer, threshold, time = layer(), torch.tensor([level]), 7
    before = tuple(torch.zeros(2, *s.shape[1:], dtype=torch.float64) for s in mixer.config.states())
    before = (*before[:2], mixer.initial_states()["turn"].double().repeat(2, 1, 1), *before[3:])
    for lengths in ((7, 7), (3, 0), (7, 5)):
        u = torch.randn(2, time, 12, dtype=torch.float64, generator=torch.manual_seed(time))
        valid = torch.arange(time) < torch.tensor(lengths)[:, None]
        y, after, gates = mixer.chunk(u, before, threshold, valid)
        for row, length in enumerate(lengths):
            states = tuple(x[row : row + 1] for x in before)
            for t in range(length):
                out, states, gate = mixer.step(u[row : row + 1, t], states, threshold)
                torch.testing.assert_close(y[row, t], out[0], atol=1e-10, rtol=1e-9)
                torch.testing.assert_close(gates[row, t], gate[0])
            for own, right in zip(after, states, strict=True):
                torch.testing.assert_close(own[row], right[0], atol=1e-10, rtol=1e-9)
        before = after


def test_the_published_memory_has_the_size_of_its_matrices_and_of_what_goes_with_them() -> None:
    """24 layers of 64 heads of 128 by 64, log-decays, 32 pairs that turn, B and x of a token."""
    states = PUBLISHED["mamba3-1.5b"].step_spec().states
    assert sum(s.bytes for s in states if s.gate) == 48 << 20
    assert sum(s.bytes for s in states if not s.gate) == 24 * 64 * (1 + 2 * 32 + 128 + 64) * 4


@torch.no_grad()
def test_a_rotation_has_not_grown_after_many_steps() -> None:
    mixer = layer().float()
    turn = mixer.initial_states()["turn"]
    for u in torch.randn(3000, 1, 12, generator=torch.manual_seed(9)):
        turn = mixer.project(u, turn)[2]
    lengths = turn.unflatten(-1, (-1, 2)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=3e-7, rtol=0.0)


def test_more_pairs_than_columns_are_refused() -> None:
    with pytest.raises(SpecError, match="at most 4, half of state_dim"):
        Mamba3Config(12, HEADS, VALUES, COLUMNS, 5, "softplus", 1e-4, 1e-5)
