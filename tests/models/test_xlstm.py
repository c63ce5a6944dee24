"""mLSTM and sLSTM against the package xlstm and the layer of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import logsigmoid

from stategate.models.memories.xlstm import (
    PUBLISHED,
    MlstmConfig,
    MlstmLayer,
    SlstmConfig,
    SlstmLayer,
    mlstm_chunk,
    mlstm_step,
)

HEADS, KEY, VALUE, STEPS = 2, 8, 6, 60
ALWAYS, NEVER = torch.tensor([0.0]), torch.tensor([2.0])


def backends() -> ModuleType:
    """The naive mLSTM of xlstm by its file: the package asks for a CUDA compiler."""
    package = importlib.util.find_spec("xlstm")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "blocks" / "mlstm" / "backends.py"
    spec = importlib.util.spec_from_file_location("_oracle_mlstm", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens(steps: int, spread: float = 3.0) -> list[torch.Tensor]:
    """q, k, v, and logits of both gates, ``(steps, 1, heads, ...)``."""
    rng = torch.Generator().manual_seed(3)
    sizes = ((KEY,), (KEY,), (VALUE,), (), ())
    q, k, v, i, f = (torch.randn(steps, 1, HEADS, *s, generator=rng) for s in sizes)
    return [q, k, v, spread * i, spread * f + 2.0]


def empty(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, HEADS, KEY, VALUE + 1, dtype=dtype), torch.zeros(1, HEADS, dtype=dtype)


def test_the_mlstm_cell_is_the_step_of_the_package_with_skipped_writes_too() -> None:
    naive, states = backends().recurrent_step_stabilized_simple, empty()
    package = (
        torch.zeros(1, HEADS, KEY, VALUE),
        torch.zeros(1, HEADS, KEY, 1),
        torch.zeros(1, HEADS, 1, 1),
    )
    closed = 0
    for q, k, v, i, f in zip(*tokens(STEPS), strict=True):
        before, threshold = states[0], torch.tensor([0.3])
        h, states, gate = mlstm_step(q, k, v, i, f, *states, threshold)
        is_closed = gate <= 0.3
        closed += int(is_closed.sum())
        assert torch.equal(states[0][is_closed], before[is_closed])
        # A closed gate is an input gate of zero: its logit is far below everything.
        logit = torch.where(is_closed, -1e9, i)
        parts = (q[..., None, :].clone(), k[..., None, :].clone(), v[..., None, :].clone())
        expected, package = naive(*package, *parts, logit[..., None, None], f[..., None, None])
        torch.testing.assert_close(h, expected.squeeze(-2), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(states[1], package[2][..., 0, 0])
        torch.testing.assert_close(
            states[0][..., :-1] * KEY**-0.5, package[0], atol=2e-6, rtol=1e-5
        )
    assert 20 < closed < 2 * STEPS - 20


def test_the_mlstm_cell_is_the_parallel_form_of_the_package() -> None:
    states, reads, all_tokens = empty(), [], tokens(STEPS)
    for token in zip(*all_tokens, strict=True):
        h, states, _ = mlstm_step(*token, *states, ALWAYS)
        reads.append(h)
    q, k, v, i, f = (x.transpose(0, 2).transpose(0, 1) for x in all_tokens)
    expected = backends().parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])
    # Its epsilon is added at another scale: its stabiliser starts at the first input gate.
    torch.testing.assert_close(torch.stack(reads, 2), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("length", "level"), [(16, 0.0), (16, 0.3), (5, 0.3), (16, 2.0)])
def test_a_chunk_of_the_mlstm_is_as_many_steps(length: int, level: float) -> None:
    stream, threshold, states = tokens(36), torch.tensor([level]), empty()
    for t in range(20):
        _, states, _ = mlstm_step(*(x[t] for x in stream), *states, ALWAYS)
    begin, reads, gates = states, [], []
    for t in range(20, 20 + length):
        h, states, gate = mlstm_step(*(x[t] for x in stream), *states, threshold)
        reads.append(h)
        gates.append(gate)
    block = (x[20:36].transpose(0, 1) for x in stream)
    h, after, gate = mlstm_chunk(*block, *begin, threshold, torch.arange(16)[None] < length)
    torch.testing.assert_close(h[:, :length], torch.stack(reads, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gate[:, :length], torch.stack(gates, 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after, states, atol=1e-5, rtol=1e-5)
    assert level < 2.0 or torch.equal(after[0], begin[0])


@pytest.mark.usefixtures("no_fla")
@torch.no_grad()
def test_an_mlstm_layer_is_that_of_transformers() -> None:
    from transformers import xLSTMConfig
    from transformers.models.xlstm import modeling_xlstm

    if modeling_xlstm.external_xlstm:
        pytest.skip("transformers was imported with the package xlstm, whose kernels it then wants")
    torch.manual_seed(4)
    package = modeling_xlstm.xLSTMLayer(
        xLSTMConfig(
            hidden_size=64, num_heads=2, num_hidden_layers=1, autocast_kernel_dtype="float32"
        )
    ).eval()
    for name, parameter in package.named_parameters():
        if "gate" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.7)
    layer = MlstmLayer(MlstmConfig(64, 2, 16, 32, 15.0, 1e-6))
    parts = (package.q, package.k, package.v, package.ogate_preact)
    layer.to_qkvo.weight.copy_(torch.cat([p.weight for p in parts]))
    for name in ("weight", "bias"):
        gates = [getattr(g, name) for g in (package.igate_preact, package.fgate_preact)]
        getattr(layer.to_gates, name).copy_(torch.cat(gates))
    layer.norm.copy_(package.multihead_norm.weight)
    layer.to_out.weight.copy_(package.out_proj.weight)
    x = torch.randn(1, 50, 64)
    states, answers = (torch.zeros(1, 2, 16, 33), torch.zeros(1, 2)), []
    for t in range(50):
        y, states, _ = layer.step(x[:, t], states, ALWAYS)
        answers.append(y)
    torch.testing.assert_close(torch.stack(answers, 1), package(x)[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_an_slstm_layer_is_that_of_the_package() -> None:
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    torch.manual_seed(5)
    sizes = {"embedding_dim": 24, "num_heads": 3, "conv1d_kernel_size": 0, "dropout": 0.0}
    package = sLSTMLayer(sLSTMLayerConfig(**sizes, backend="vanilla", batch_size=1)).eval()
    for parameter in package.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    cell, layer = package.slstm_cell, SlstmLayer(SlstmConfig(24, 3, 1e-5))
    # The package passes what it names fgate where its cell takes the input gate.
    gates = (package.fgate, package.igate, package.zgate, package.ogate)
    layer.inputs.copy_(torch.stack([g.weight for g in gates]))
    layer.recurrent.copy_(cell._recurrent_kernel_.reshape(3, 4, 8, 8).transpose(0, 1))
    layer.bias.copy_(cell._bias_.reshape(4, 1, 24))
    layer.norm.copy_(1.0 + package.group_norm.weight)
    x = torch.randn(1, STEPS, 24)
    states: tuple[torch.Tensor, ...] = (*(torch.zeros(1, 24),) * 3, layer.initial_states()["m"])
    answers = []
    for t in range(STEPS):
        y, states, _ = layer.step(x[:, t], states, ALWAYS)
        answers.append(y)
    torch.testing.assert_close(torch.stack(answers, 1), package(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_closed_slstm_channel_keeps_its_bytes_and_an_unwritten_one_reads_as_zero() -> None:
    torch.manual_seed(6)
    layer = SlstmLayer(SlstmConfig(24, 3, 1e-5))
    states: tuple[torch.Tensor, ...] = (*(torch.zeros(1, 24),) * 3, layer.initial_states()["m"])
    _, states, _ = layer.step(torch.randn(1, 24), states, NEVER)
    assert not states[0].any() and not states[2].any() and bool(states[3].isfinite().all())
    for threshold in (ALWAYS, torch.tensor([0.4])):
        for x in torch.randn(20, 1, 24):
            before = states
            _, states, gate = layer.step(x, states, threshold)
            closed = gate <= threshold
            assert torch.equal(states[0][closed], before[0][closed])
            assert torch.equal(states[1][closed], before[1][closed])
    assert bool(closed.any())


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_a_stabiliser_stays_right_over_a_hundred_thousand_steps(quiet: bool) -> None:
    """Against float64; in every fourth thousand of steps nothing is written where ``quiet``."""
    states, exact = empty(), empty(torch.float64)
    stream, worst, scale = tokens(1000), 0.0, 0.0
    for t in range(100_000):
        token = [x[t % 1000] for x in stream]
        threshold = NEVER if quiet and t // 1000 % 4 == 3 else ALWAYS
        _, states, _ = mlstm_step(*token, *states, threshold)
        _, exact, _ = mlstm_step(*(x.double() for x in token), *exact, threshold)
        if t % 20 == 0:
            error = (states[0] - exact[0]).flatten(2).norm(dim=-1) / exact[0].flatten(2).norm(
                dim=-1
            )
            worst = max(worst, float(error.max()))
            # After a thousand quiet steps m is near -1,500, where a float32 has steps of 1e-4.
            scale = max(
                scale, float(((states[1] - exact[1]).abs() / exact[1].abs().clamp(min=1)).max())
            )
    assert worst < 5e-6 and scale < 5e-6


@pytest.mark.parametrize("chunks", [False, True])
def test_a_memory_fades_that_forgets_less_in_a_step_than_its_stabiliser_can_show(
    chunks: bool,
) -> None:
    """At m = 12 a float32 has steps of 1e-6, and a forget gate of 15 forgets 3e-7."""
    token = [x[:1] for x in tokens(1)]
    q, k, v, i, f = (x[0] for x in token)
    i, f = torch.full_like(i, 12.0), torch.full_like(f, 15.0)
    _, begin, _ = mlstm_step(q, k, v, i, f, *empty(), ALWAYS)
    steps, states, little = 480, begin, torch.full_like(i, -50.0)
    if chunks:
        block = [x.unsqueeze(1).repeat(1, 16, *[1] * (x.dim() - 1)) for x in (q, k, v, little, f)]
        for _ in range(steps // 16):
            _, states, _ = mlstm_chunk(*block, *states, ALWAYS, torch.ones(1, 16, dtype=torch.bool))
    else:
        for _ in range(steps):
            _, states, _ = mlstm_step(q, k, v, little, f, *states, ALWAYS)
    in_all = [C.double() * torch.exp(m.double())[..., None, None] for C, m in (begin, states)]
    faded = (in_all[1] / in_all[0]).log().mean() / steps
    assert float(faded) == pytest.approx(float(logsigmoid(f.double())[0, 0]), rel=0.15)


def test_the_stabiliser_takes_all_forgetting_in_the_true_scale() -> None:
    """exp(m) C decays by sigmoid(f) in each quiet step, as the unstabilised memory would."""
    q, k, v, i, f = tokens(8)
    _, (C, m), _ = mlstm_step(q[0], k[0], v[0], i[0], f[0], *empty(torch.float64), ALWAYS)
    start, matrix, faded = m.double(), C, torch.zeros(1, HEADS, dtype=torch.float64)
    for t in range(1, 8):
        _, (C, m), _ = mlstm_step(q[t], k[t], v[t], i[t], f[t], C, m, NEVER)
        faded += logsigmoid(f[t].double())
    assert torch.equal(C, matrix)
    torch.testing.assert_close(m.double() - start, faded, atol=1e-5, rtol=1e-6)


def test_the_memory_of_xlstm_7b_has_its_published_size() -> None:
    states = PUBLISHED["xlstm-7b"].step_spec().states
    sums = 32 * 8 * 256 * 4  # the sum of keys, in the last column
    assert sum(s.bytes for s in states if s.name.endswith(".C")) - sums == 128 << 20
