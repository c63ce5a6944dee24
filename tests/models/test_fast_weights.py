"""TTT-linear and Titans against naive code of fla-core, and against autograd."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from stategate.models.memories.fast_weights import (
    PUBLISHED,
    TitansConfig,
    TitansLayer,
    TttConfig,
    TttLayer,
)

HEADS, DIM, STEPS = 2, 8, 60
ALWAYS = torch.tensor([0.0])
States = tuple[torch.Tensor, ...]


def ttt() -> TttLayer:
    torch.manual_seed(3)
    layer = TttLayer(TttConfig(16, HEADS, DIM, 1e-6), rates=1)
    with torch.no_grad():
        layer.W.mul_(20.0)
        layer.b.normal_()
        layer.norm.uniform_(0.5, 1.5)
        layer.shift.normal_(std=0.3)
    return layer


def titans() -> tuple[TitansLayer, States]:
    layer = TitansLayer(TitansConfig(16, HEADS, DIM, 1e-6), rates=3)
    matrix = torch.zeros(1, HEADS, DIM, DIM)
    return layer, (matrix, matrix, layer.initial_states()["mix"])


def tokens(rates: int, steps: int = STEPS) -> tuple[torch.Tensor, ...]:
    """q, k (unit), v ``(steps, 1, heads, dim)`` and rates ``(steps, 1, rates, heads, 1)``."""
    rng = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(steps, 1, HEADS, DIM, generator=rng) for _ in range(3))
    unit = k / k.norm(dim=-1, keepdim=True)
    return q, unit, v, torch.rand(steps, 1, rates, HEADS, 1, generator=rng)


@torch.no_grad()
def run(
    layer: TttLayer | TitansLayer, states: States, threshold: torch.Tensor, stream: States
) -> tuple[torch.Tensor, States, torch.Tensor]:
    """Reads, last states, gates; a closed head must keep what its gate guards."""
    guarded = [s.gate is not None for s in layer.config.states()]
    reads, gates = [], []
    for token in zip(*stream, strict=True):
        before = states
        o, states, gate = layer.recur(*token, states, threshold)
        for old, new, is_guarded in zip(before, states, guarded, strict=True):
            closed = gate <= threshold
            assert not is_guarded or torch.equal(old[closed], new[closed])
        reads.append(o)
        gates.append(gate)
    return torch.stack(reads, 1), states, torch.stack(gates, 1)


def test_ttt_linear_is_the_naive_form_with_mini_batches_of_one_token(
    fla_naive: Callable[[str], ModuleType],
) -> None:
    layer, stream = ttt(), tokens(1)
    reads, states, _ = run(layer, tuple(layer.initial_states().values()), ALWAYS, stream)
    q, k, v, eta = (x.squeeze(1).unsqueeze(0) for x in stream)
    with torch.no_grad():
        o, W, b = fla_naive("ttt").chunk_ttt_linear_ref(
            q, k, v, layer.norm, layer.shift, eta[:, :, 0] / DIM, None, 1e-6, 1,
            layer.W.unsqueeze(0), layer.b[None, :, None], True,
        )  # fmt: skip
    torch.testing.assert_close(reads, o, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(states[0], W, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[1], b.squeeze(2), atol=1e-5, rtol=1e-4)


def test_what_ttt_linear_writes_is_the_gradient_of_its_loss() -> None:
    layer, (q, k, v, eta) = ttt(), tokens(1, 1)
    W, b = (s.detach().clone().requires_grad_() for s in layer.initial_states().values())
    z = (k[0].unsqueeze(-2) @ W).squeeze(-2) + b
    normed = torch.nn.functional.layer_norm(z, (DIM,), eps=1e-6) * layer.norm + layer.shift
    loss = ((normed - (v[0] - k[0])) ** 2).sum() / 2
    by_W, by_b = torch.autograd.grad(loss, (W, b))
    _, after, gate = run(layer, (W.detach(), b.detach()), ALWAYS, (q, k, v, eta))
    rate = eta[0, :, 0] / DIM
    torch.testing.assert_close(
        after[0] - W.detach(), -rate.unsqueeze(-1) * by_W, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(after[1] - b.detach(), -rate * by_b, atol=1e-5, rtol=1e-4)
    squares = sum(x.flatten(2).square().sum(-1) for x in (by_W, by_b))
    torch.testing.assert_close(gate[:, 0], rate.squeeze(-1) * squares.sqrt(), atol=1e-5, rtol=1e-4)


def momentum(
    naive: ModuleType, stream: States, theta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The momentum delta rule, whose momentum has the other sign."""
    q, k, v, rates = (x.squeeze(1).unsqueeze(0) for x in stream)
    mu, alpha = (rates[:, :, i, :, 0].log() for i in (1, 2))
    ones = torch.ones_like(mu)
    run_naive = naive.recurrent_momentum_delta_rule_ref
    return run_naive(q, k, v, alpha, mu, k, ones, theta, output_final_state=True)


def test_titans_is_the_momentum_delta_rule_with_skipped_surprises_too(
    fla_naive: Callable[[str], ModuleType],
) -> None:
    for level in (0.0, 0.9):
        layer, states = titans()
        stream = tokens(3)
        reads, (M, P, mix), gates = run(layer, states, torch.tensor([level]), stream)
        is_open = gates > level
        assert (level == 0.0) == bool(is_open.all())
        theta = torch.where(is_open, stream[3][:, 0, 0, :, 0].unsqueeze(0), 0.0)
        o, state = momentum(fla_naive("momentum_delta_rule"), stream, theta)
        torch.testing.assert_close(reads, o, atol=2e-6, rtol=1e-5)
        a, b, c = mix.unsqueeze(-1).unbind(2)
        torch.testing.assert_close(
            a[..., None] * M + b[..., None] * P, state[0], atol=2e-6, rtol=1e-5
        )
        torch.testing.assert_close(c[..., None] * P, -state[1], atol=2e-6, rtol=1e-5)


def test_the_memory_of_ttt_linear_has_its_published_size() -> None:
    """Heads of 64: a matrix and a bias each, in 24 layers of 32 heads."""
    assert PUBLISHED["ttt-linear-1.3b"].step_spec().state_bytes == 24 * 32 * (64 * 64 + 64) * 4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ttt", "titans"])
def test_many_steps_stay_as_near_to_float64_as_a_state_in_float32_can(family: str) -> None:
    """Beside float64, and beside float64 whose states alone are rounded to float32.

    TTT-linear divides by the deviation of what it reads and forgets nothing, so what a token
    rounds may grow a hundredfold in a later one: a fixed bound would hold for these tokens alone.
    """
    layer, states = (
        titans() if family == "titans" else (ttt(), tuple(ttt().initial_states().values()))
    )
    states, threshold = tuple(s.detach() for s in states), torch.tensor([0.2])
    exact = rounded = tuple(s.double() for s in states)
    errors = torch.zeros(2, dtype=torch.float64)
    stream = tokens(3 if family == "titans" else 1, 1000)
    with torch.no_grad():
        for t in range(20_000):
            token = [x[t % 1000] for x in stream]
            wide = [x.double() for x in token]
            o, states, _ = layer.recur(*token, states, threshold)
            right, exact, _ = layer.recur(*wide, exact, threshold)
            near, rounded, _ = layer.recur(*wide, rounded, threshold)
            rounded = tuple(s.float().double() for s in rounded)
            off = [(x - right).abs().max() for x in (o, near)]
            errors = torch.maximum(errors, torch.stack(off).double())
    assert errors[0] < 5 * errors[1] and errors[0] < 1e-3
