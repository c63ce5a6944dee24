"""RWKV-7 against the mixes of its authors' package rwkv."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

import pytest
import torch

from stategate.contract.errors import SpecError
from stategate.models.memories.matrix import norm_of
from stategate.models.memories.rwkv7 import PUBLISHED, Rwkv7, Rwkv7Config, Token, rwkv7_step
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.step import initial_states, threshold_inputs

LAYER = Rwkv7Config(16, 8, 4, 4, 4, 6, hidden=32, norm_eps=1e-5)


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The package, which reads what it is from the environment when it is imported."""
    os.environ["RWKV_V7_ON"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles its functions with torch.jit
        import rwkv.model

    return rwkv.model


def stack(layers: int = 3) -> Rwkv7:
    torch.manual_seed(2)
    model = Rwkv7(StackConfig(5, 3, layers, None, LAYER)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln" in name or name.startswith("norm"):
                parameter.uniform_(0.5, 1.5)
    return model


def package_answers(package: ModuleType, model: Rwkv7, x: torch.Tensor) -> list[torch.Tensor]:
    """Answers of the package's functions, one token after the other."""
    heads, width = LAYER.gates, LAYER.width
    states = [
        [torch.zeros(width), torch.zeros(heads, 8, 8), torch.zeros(width)] for _ in model.blocks
    ]
    answers = []
    for row in x:
        hidden, first = model.ln0(model.encode(row))[0], torch.empty(0)
        for i, (block, state) in enumerate(zip(model.blocks, states, strict=True)):
            a = block.att
            offset = (a.v0, a.v1, a.v2)
            weights = (p.weight.mT for p in (a.receptance, a.key, a.value, a.output))
            r, w, k, v, rate, g = a.x_mix
            mixed, state[0], state[1], first = package.RWKV_x070_TMix_one(
                i, heads, 8, block.ln1(hidden), state[0], first, state[1],
                r, w, k, v, rate, g, a.w0, a.w1, a.w2, a.a0, a.a1, a.a2, *offset,
                a.g1, a.g2, a.k_k, a.k_a, a.r_k, *weights, a.ln_x.weight, a.ln_x.bias,
            )  # fmt: skip
            hidden = hidden + mixed
            mixed, state[2] = package.RWKV_x070_CMix_one(
                block.ln2(hidden),
                state[2],
                block.x_k,
                block.ffn_key.weight.mT,
                block.ffn_value.weight.mT,
            )
            hidden = hidden + mixed
        answers.append(model.head(model.norm(hidden)))
    return answers


@torch.no_grad()
def test_a_stack_is_the_published_mixes_of_the_package(package: ModuleType) -> None:
    model, x = stack(), torch.randn(40, 1, 5)
    states, answers = initial_states(model), []
    for row in x:
        result = model.step({"x": row, "threshold": torch.tensor([0.0])}, states)
        states = dict(result.states)
        answers.append(result.outputs["y"][0])
    expected = package_answers(package, model, x)
    torch.testing.assert_close(torch.stack(answers), torch.stack(expected), atol=2e-5, rtol=1e-4)


def eager(token: Token, S: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
    """The formula, in which a step that does not write only decays."""
    kk, _, k, v, g, a = token
    erased = torch.einsum("bhk,bhkv->bhv", kk, S)
    change = k[..., None] * v[..., None, :] - (kk * a)[..., None] * erased[..., None, :]
    return g.exp()[..., None] * S + torch.where(write[..., None, None], change, 0.0)


def test_a_closed_head_keeps_its_matrix_and_lacks_an_update_as_large_as_its_gate() -> None:
    rng = torch.Generator().manual_seed(4)
    S, carried = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8)
    right, threshold, closed = S, torch.tensor([2.5]), 0
    for _ in range(60):
        kk, r, k, v, g, a = (torch.randn(1, 2, 8, generator=rng) for _ in range(6))
        kk, g, a = (
            kk / kk.norm(dim=-1, keepdim=True),
            -0.606531 * torch.sigmoid(g),
            torch.sigmoid(a),
        )
        token = Token(kk, r, 0.3 * k, v, g, a)
        o, (after, log_decay), gate = rwkv7_step(token, S, carried, threshold)
        missing = eager(token, right, torch.ones(1, 2, dtype=torch.bool))
        missing = missing - eager(token, right, torch.zeros(1, 2, dtype=torch.bool))
        torch.testing.assert_close(missing.flatten(2).norm(dim=-1), gate, atol=2e-5, rtol=1e-4)
        right = eager(token, right, gate > threshold)
        assert torch.equal(after[gate <= threshold], S[gate <= threshold])
        S, carried = after, log_decay
        closed += int((gate <= threshold).sum())
        torch.testing.assert_close(S * carried.exp()[..., None], right, atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(o, torch.einsum("bhk,bhkv->bhv", r, right), atol=2e-5, rtol=1e-5)
    assert 20 < closed < 100


@pytest.mark.parametrize("updates", [2, 3])
def test_a_write_that_puts_back_what_it_erases_has_the_gate_of_what_is_left(updates: int) -> None:
    """As a head writes that has learned its key: both products are 1,000 times their sum."""
    rng = torch.Generator().manual_seed(9)
    key, value = (10 * torch.randn(6, 1, n, generator=rng) for n in (8, 12))
    share = torch.tensor([1.0, -0.4, -0.6] if updates == 3 else [1.0, -1.0]).unsqueeze(-1)
    k = key * share / 10 + 1e-4 * torch.randn(6, updates, 8, generator=rng)
    u = value + 1e-3 * torch.randn(6, updates, 12, generator=rng)
    right = (k.double().mT @ u.double()).norm(dim=(-1, -2))
    assert bool((right < 3e-3 * (k.norm(dim=(-1, -2)) * u.norm(dim=(-1, -2)))).all())
    torch.testing.assert_close(norm_of(k, u).double(), right, atol=1e-6, rtol=2e-3)


def test_layers_of_rwkv7_and_their_stack_belong_together() -> None:
    with pytest.raises(SpecError, match="first of them"):
        Stack(StackConfig(5, 3, 1, None, LAYER))
    with pytest.raises(SpecError, match="mlp=8"):
        Rwkv7(StackConfig(5, 3, 1, 8, LAYER))


# MiB of matrices, float32, from the table of sizes of arXiv:2503.14456.
@pytest.mark.parametrize(
    ("name", "mib"),
    [("rwkv7-0.1b", 2.25), ("rwkv7-0.4b", 6), ("rwkv7-1.5b", 12), ("rwkv7-2.9b", 20)],
)
def test_published_memories_have_their_published_size(name: str, mib: float) -> None:
    states = PUBLISHED[name].step_spec().states
    assert sum(s.bytes for s in states if s.name.endswith(".S")) == int(mib * (1 << 20))


@torch.no_grad()
def test_a_threshold_of_zero_never_closes_a_head_even_if_nothing_is_missing() -> None:
    model = stack(1)
    model.blocks[0].att.value.weight.zero_()
    inputs = {"x": torch.zeros(1, 5), **threshold_inputs(model.step_spec())}
    gate = model.step(inputs, initial_states(model)).gates["write"]
    assert bool((gate > 0).all()) and bool((gate < 1e-5).all())
