"""Rows that are kept: against attention over a list of tokens, a deque, and torch's attention."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stategate.contract.errors import SpecError
from stategate.models.memories.window import (
    PUBLISHED,
    ObservationRing,
    RingConfig,
    TokensConfig,
    TokensLayer,
    WindowConfig,
    WindowLayer,
)
from stategate.models.step import commit, initial_states, threshold_inputs

CONFIG = WindowConfig(16, 4, 2, 8, 2, 5, 1e4, 1e-6, energy=True)
ALWAYS = torch.tensor([0.0])


def layer(config: WindowConfig) -> WindowLayer:
    torch.manual_seed(3)
    return WindowLayer(config)


def empty(config: WindowConfig) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in config.states())


def by_list(model: WindowLayer, stream: Tensor, threshold: float) -> Tensor:
    """All tokens that were admitted, in a list; places in the cache rotate, as published."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    c, sinks, admitted, answers = model.config, model.config.sinks or 0, [], []
    for x in stream:
        k, v = model.to_kv(x).reshape(2, c.kv_heads, c.head_dim)
        energy = torch.sigmoid(model.to_energy(x))
        token = (k, v * energy if c.energy else v)
        ring = admitted[sinks:]
        visible = [*admitted[:sinks], *ring[len(ring) - min(len(ring), c.window - 1) :], token]
        keys, values = (
            torch.stack(part, dim=1).unsqueeze(0) for part in zip(*visible, strict=True)
        )
        rates = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        angles = torch.arange(len(visible)).unsqueeze(-1) * torch.cat((rates, rates))
        cos, sin = angles.cos().unsqueeze(0), angles.sin().unsqueeze(0)
        q = model.to_q(x).reshape(1, c.heads, 1, c.head_dim).expand(-1, -1, len(visible), -1)
        q, keys = apply_rotary_pos_emb(q, keys, cos, sin)
        o = nn.functional.scaled_dot_product_attention(q[:, :, -1:], keys, values, enable_gqa=True)
        answers.append(model.to_out(o.reshape(1, -1)))
        if float(energy) > threshold:
            admitted.append(token)
    return torch.cat(answers)


@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, sinks=None, energy=False), replace(CONFIG, window=2)]
)
@torch.no_grad()
def test_a_window_is_attention_over_sinks_and_the_last_tokens_however_often_it_wraps(
    config: WindowConfig, level: float
) -> None:
    pytest.importorskip("transformers", reason="transformers needs Python 3.11")
    model, states, answers, closed = layer(config), empty(config), [], 0
    stream = torch.randn(60, 1, 16)
    sinks = None
    for x in stream:
        before = states
        y, states, gate = model.step(x, states, torch.tensor([level]))
        answers.append(y)
        if float(gate) <= level:
            closed += 1
            assert all(torch.equal(a, b) for a, b in zip(before, states, strict=True))
        if config.sinks and int(states[2]) == config.sinks and sinks is None:
            sinks = [s[:, :, : config.sinks].clone() for s in states[:2]]
    expected = by_list(model, stream[:, 0], level)
    torch.testing.assert_close(torch.cat(answers), expected, atol=2e-6, rtol=1e-5)
    assert (closed == 0) == (level == 0.0) and len(stream) - closed > 3 * config.slots
    if sinks is not None:  # the first tokens are still there
        assert all(
            torch.equal(s[:, :, : config.sinks], a) for s, a in zip(states, sinks, strict=False)
        )


@torch.no_grad()
def test_a_token_writes_one_slot_and_no_other() -> None:
    model, states = layer(CONFIG), empty(CONFIG)
    slots = []
    for x in torch.randn(20, 1, 16):
        before = states
        _, states, _ = model.step(x, states, ALWAYS)
        changed = (states[0] != before[0]).any(dim=(0, 1, 3)).nonzero().flatten().tolist()
        slots += changed
        assert len(changed) == 1
    assert slots == [0, 1, *[2, 3, 4, 5] * 4, 2, 3]


@torch.no_grad()
def test_a_ring_of_observations_is_a_deque_of_those_that_were_kept() -> None:
    torch.manual_seed(4)
    model = ObservationRing(RingConfig(5, 3, 4, 8, threshold=0.5)).eval()
    spec, states, frames, writes = model.step_spec(), initial_states(model), deque(maxlen=3), 0
    for x in torch.randn(50, 1, 5):
        result = model.step({"x": x, **threshold_inputs(spec)}, states)
        history = [*frames, *[torch.zeros(1, 5)] * (3 - len(frames)), x]
        expected = model.head(nn.functional.silu(model.hidden(torch.cat(history, dim=-1))))
        torch.testing.assert_close(result.outputs["y"], expected)
        if torch.sigmoid(model.to_energy(x)) > 0.5:
            frames.append(x)
            writes += 1
        states = commit(spec, states, result)
    assert 10 < writes < 40


@torch.no_grad()
def test_memory_tokens_are_torchs_own_attention_blended_by_the_gate() -> None:
    torch.manual_seed(5)
    model = TokensLayer(TokensConfig(16, 6, 4, 1e-6))
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    attention.in_proj_weight.copy_(model.to_qkv.weight)
    attention.in_proj_bias.copy_(model.to_qkv.bias)
    attention.out_proj.load_state_dict(model.to_out.state_dict())
    tokens = model.initial_states()["tokens"]
    for x in torch.randn(20, 1, 16):
        y, (after,), gate = model.step(x, (tokens,), torch.tensor([0.5]))
        both = torch.cat((tokens, x[:, None]), dim=1)
        mixed = attention(both, both, both)[0]
        torch.testing.assert_close(y, mixed[:, -1], atol=1e-6, rtol=1e-5)
        share = torch.sigmoid(model.to_gate(mixed[:, :-1]))
        blended = (1 - share) * tokens + share * mixed[:, :-1]
        is_open = share > 0.5
        torch.testing.assert_close(
            after, torch.where(is_open, blended, tokens), atol=1e-6, rtol=1e-5
        )
        assert torch.equal(after[gate <= 0.5], tokens[gate <= 0.5])
        assert not torch.equal(after[gate > 0.5], tokens[gate > 0.5]) or not is_open.any()
        tokens = after


def test_a_published_window_has_the_bytes_of_its_cache() -> None:
    """Keys and values of 1,023 tokens beside the present one, and one number for each layer."""
    row = 2 * 32 * 128 * 4
    states = PUBLISHED["streaming-llama-2-7b"].step_spec()
    assert states.state_bytes == 32 * (1023 * row + 4)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"window": 1}, "window"), ({"kv_heads": 3}, "heads"), ({"sinks": 0}, "sinks")],
)
def test_windows_that_remember_nothing_are_refused(change: dict, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        replace(CONFIG, **change)
