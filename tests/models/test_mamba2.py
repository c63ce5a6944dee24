from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from importlib.metadata import files

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import SpecError
from stategate.export.inputs import random_episode
from stategate.models.memories.mamba2.cell import Mamba2, Mamba2Layer, Projections
from stategate.models.memories.mamba2.config import PUBLISHED, Mamba2Config
from stategate.models.memories.matrix import Plain
from stategate.models.step import StepResult, commit, initial_states, threshold_inputs
from stategate.runtime import Session

CONFIG = Mamba2Config(
    features=6,
    out_features=3,
    d_model=24,
    layers=2,
    heads=4,
    head_dim=12,
    state_dim=8,
    groups=2,
    conv_width=4,
    dt_min=0.0,
    dt_max=None,
    norm_eps=1e-5,
)
TOKENS = 70  # more than four chunks of the oracle
CLOSE = {"atol": 5e-6, "rtol": 1e-5}


def lively(module: nn.Module) -> nn.Module:
    """Weights as after training: steps of all sizes, no norm or skip of exactly one."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("dt_bias"):
                weight.uniform_(-4.0, 1.0)
            elif name.endswith(("norm.weight", ".D", "conv1d.bias")) or name == "D":
                weight.uniform_(0.5, 1.5)
    return module.eval()


def stack(config: Mamba2Config = CONFIG, threshold: float = 0.0) -> Mamba2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = lively(Mamba2(config, threshold))
    assert isinstance(model, Mamba2)
    return model


def stream(steps: int, config: Mamba2Config = CONFIG) -> torch.Tensor:
    return torch.randn(steps, 1, config.features, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def run(model: Mamba2, x: torch.Tensor) -> list[tuple[StepResult, dict[str, torch.Tensor]]]:
    """Each step's result, and the states that it began with."""
    spec, states, results = model.step_spec(), initial_states(model), []
    for row in x:
        result = model.step({"x": row, **threshold_inputs(spec)}, states)
        results.append((result, states))
        states = commit(spec, states, result)
    return results


def after_write(layer: Mamba2Layer, p: Projections, h: torch.Tensor) -> torch.Tensor:
    """The next h where every head is written."""
    _, after = layer.scan(p, Plain(h.to(p.x.dtype).transpose(-1, -2)), torch.tensor([-1.0]))
    return after.transpose(-1, -2)


def answer(layer: Mamba2Layer, p: Projections, h: torch.Tensor) -> torch.Tensor:
    """What the heads say of h as it is: closed heads are read without a write."""
    return layer.scan(p, Plain(h.to(p.x.dtype).transpose(-1, -2)), torch.tensor([torch.inf]))[0]


@pytest.mark.parametrize(
    ("name", "matrix_bytes", "conv_bytes_bf16"),
    [
        ("mamba2-1.3b", 100_663_296, 1_253_376),
        ("mamba2-130m", 18 << 20, None),
        ("gdn2-paper-layer", 1 << 20, None),
    ],
)
def test_published_sizes_remember_the_published_bytes_before_a_weight_exists(
    name: str, matrix_bytes: int, conv_bytes_bf16: int | None
) -> None:
    states = PUBLISHED[name].step_spec().states
    assert sum(s.bytes for s in states if s.gate == "write") == matrix_bytes
    if conv_bytes_bf16 is not None:
        assert sum(s.bytes for s in states if s.gate is None) // 4 * 2 == conv_bytes_bf16


def test_the_state_of_the_seven_billion_model_is_that_of_its_default_configuration() -> None:
    hf = pytest.importorskip("transformers", reason="transformers needs Python 3.11")
    published, ours = hf.Mamba2Config(), PUBLISHED["codestral-mamba-7b"]
    assert (published.num_heads, published.head_dim) == (ours.heads, ours.head_dim)
    assert (published.state_size, published.n_groups) == (ours.state_dim, ours.groups)
    assert (published.num_hidden_layers, published.hidden_size) == (ours.layers, ours.d_model)
    assert (published.vocab_size, published.conv_kernel) == (ours.features, ours.conv_width)


def published_model(monkeypatch: pytest.MonkeyPatch, config: Mamba2Config) -> nn.Module:
    """The same stack in transformers, with lively random weights and no kernels."""
    monkeypatch.setitem(sys.modules, "fla", None)  # found, it would be called on a CPU too
    hf = pytest.importorskip("transformers", reason="transformers needs Python 3.11")
    sizes = hf.Mamba2Config(
        hidden_size=config.d_model,
        num_hidden_layers=config.layers,
        num_heads=config.heads,
        head_dim=config.head_dim,
        state_size=config.state_dim,
        n_groups=config.groups,
        conv_kernel=config.conv_width,
        time_step_limit=(config.dt_min, config.dt_max or math.inf),
        layer_norm_epsilon=config.norm_eps,
        vocab_size=11,
        chunk_size=16,
    )
    torch.manual_seed(2)
    return lively(hf.Mamba2Model(sizes))


@pytest.mark.parametrize("limits", [(0.0, None), (0.05, 0.4)])
@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_a_layer_steps_as_the_published_one_runs_over_the_sequence(
    monkeypatch: pytest.MonkeyPatch, groups: int, limits: tuple[float, float]
) -> None:
    config = replace(CONFIG, groups=groups, dt_min=limits[0], dt_max=limits[1])
    oracle = published_model(monkeypatch, config)
    from transformers import DynamicCache

    cache = DynamicCache(config=oracle.config)
    u = torch.randn(1, TOKENS, config.d_model)
    expected = oracle.layers[0].mixer(u, cache_params=cache)
    layer = Mamba2Layer(config)
    layer.load_state_dict(oracle.layers[0].mixer.state_dict())
    h = torch.zeros(1, config.heads, config.head_dim, config.state_dim)
    conv = torch.zeros(1, config.conv_channels, config.conv_width - 1)
    for t in range(TOKENS):
        p = layer.project(u[:, t], conv)
        h, conv = after_write(layer, p, h), p.conv
        torch.testing.assert_close(layer.out(p, answer(layer, p, h)), expected[:, t], **CLOSE)
    torch.testing.assert_close(h, cache.get_recurrent_state(0, state_idx=0), **CLOSE)
    kept = cache.get_conv_state(0, state_idx=0)[..., 1:]  # its first column is never read again
    torch.testing.assert_close(conv, kept, **CLOSE)
    assert h.abs().max() > 0.5  # the agreement is about something


@torch.no_grad()
def test_a_stack_steps_as_the_published_model_runs_over_the_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle = published_model(monkeypatch, CONFIG)
    model = stack()
    for i, block in enumerate(oracle.layers):
        model.mixers[i].load_state_dict(block.mixer.state_dict())
        model.norms[i].load_state_dict(block.norm.state_dict())
    model.norms[-1].load_state_dict(oracle.norm_f.state_dict())
    x = stream(TOKENS)
    hidden = oracle(inputs_embeds=model.encode(x).transpose(0, 1)).last_hidden_state
    expected = model.head(hidden)[0]
    ours = torch.cat([result.outputs["y"] for result, _ in run(model, x)])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


def reference(path: str) -> object:
    """A module of fla-core by its file: importing fla.ops would ask for triton."""
    file = next(f for f in files("fla-core") or [] if str(f).endswith(path))
    spec = importlib.util.spec_from_file_location("fla_reference", file.locate())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_the_recurrence_is_gated_linear_attention_with_one_decay_for_each_head() -> None:
    layer = stack().mixers[0]
    config = CONFIG
    h = torch.zeros(1, config.heads, config.head_dim, config.state_dim)
    conv = torch.zeros(1, config.conv_channels, config.conv_width - 1)
    parts, reads = [], []
    for u in torch.randn(TOKENS, 1, config.d_model, generator=torch.Generator().manual_seed(4)):
        p = layer.project(u, conv)
        h, conv = after_write(layer, p, h), p.conv
        parts.append(p)
        reads.append(answer(layer, p, h) - layer.D.unsqueeze(-1) * p.x)
    x, B, C, dt = (torch.stack([getattr(p, n) for p in parts], 1) for n in ("x", "B", "C", "dt"))
    o, S = reference("ops/simple_gla/naive.py").naive_recurrent_simple_gla(
        C, B, dt.unsqueeze(-1) * x, -dt * layer.A_log.exp(), scale=1.0
    )
    torch.testing.assert_close(torch.stack(reads, 1), o, **CLOSE)
    torch.testing.assert_close(h, S.transpose(-1, -2), **CLOSE)


@torch.no_grad()
def branching(model: Mamba2, x: torch.Tensor, states: dict[str, torch.Tensor]) -> StepResult:
    """A step with a Python branch for each head: writes first, reads afterwards."""
    u, after, gates = model.encode(x), {}, []
    for i, (mixer, norm) in enumerate(zip(model.mixers, model.norms, strict=False)):
        p = mixer.project(norm(u), states[f"layers.{i}.conv"])
        h, written = states[f"layers.{i}.h"].clone(), after_write(mixer, p, states[f"layers.{i}.h"])
        for head in range(model.config.heads):
            if float(p.dt[0, head]) > model.threshold:
                h[0, head] = written[0, head]
        u = u + mixer.out(p, answer(mixer, p, h))
        after |= {f"layers.{i}.h": h, f"layers.{i}.conv": p.conv}
        gates.append(p.dt)
    return StepResult(
        {"y": model.head(model.norms[-1](u))}, after, {"write": torch.stack(gates, 1)}
    )


def median_dt(model: Mamba2, x: torch.Tensor) -> float:
    return float(torch.cat([result.gates["write"] for result, _ in run(model, x)]).median())


def test_half_of_the_heads_skip_at_the_median_and_keep_their_matrices_bit_for_bit() -> None:
    x = stream(200)
    model = stack()
    model.threshold = median_dt(model, x)
    shares = []
    for row, (result, before) in zip(x, run(model, x), strict=True):
        is_open = result.gates["write"][0] > model.threshold
        for i, heads in enumerate(is_open):
            old, new = (states[f"layers.{i}.h"][0] for states in (before, result.states))
            assert torch.equal(new[~heads], old[~heads])
            assert not (new[heads] == old[heads]).flatten(1).all(1).any()
        expected = branching(model, row, before)
        torch.testing.assert_close(tuple(result), tuple(expected))
        shares.append(is_open.float().mean())
    assert 0.3 < float(torch.stack(shares).mean()) < 0.7


def test_a_threshold_of_zero_is_the_plain_model_to_the_last_bit() -> None:
    gated, plain = stack(), stack(threshold=-1.0)  # dt is never below -1: nothing can be closed
    for (a, _), (b, _) in zip(run(gated, stream(200)), run(plain, stream(200)), strict=True):
        assert torch.equal(a.outputs["y"], b.outputs["y"])
        assert all(torch.equal(a.states[name], b.states[name]) for name in b.states)


def test_columns_of_the_convolution_move_while_every_head_is_closed() -> None:
    for result, before in run(stack(threshold=1e6), stream(20)):
        for i in range(CONFIG.layers):
            conv, old = result.states[f"layers.{i}.conv"], before[f"layers.{i}.conv"]
            assert torch.equal(conv[..., :-1], old[..., 1:])
            assert not torch.equal(conv, old)
            assert not result.states[f"layers.{i}.h"].any()


@torch.no_grad()
def test_a_skip_injects_no_more_error_than_documented() -> None:
    model = stack()
    largest = 0.0
    for row, (_, before) in zip(stream(200), run(model, stream(200)), strict=True):
        layer, h = model.mixers[0], before["layers.0.h"].double()
        p = layer.project(model.norms[0](model.encode(row)), before["layers.0.conv"])
        injected = (after_write(layer, p, h) - h).flatten(2).norm(dim=-1)
        bound = p.dt * layer.A_log.exp() * h.flatten(2).norm(dim=-1)
        bound = bound + p.dt * p.x.norm(dim=-1) * p.B.norm(dim=-1)
        largest = max(largest, float((injected / bound).max()))
    assert 0.5 < largest < 1.0 + 1e-6


@pytest.mark.slow
def test_a_bundle_follows_torch_for_a_thousand_steps(seal_model, tmp_path) -> None:
    receipt = seal_model(tmp_path / "bundle", stack(), steps=1000).manifest.verification
    assert receipt.steps == 1000
    assert receipt.gate_openings["write"] == 1000
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5


@pytest.mark.slow
def test_a_head_that_is_closed_in_a_bundle_keeps_its_bytes(seal_model, tmp_path) -> None:
    x = stream(300)
    model = stack()
    model.threshold = median_dt(model, x)
    openings = 0
    with Session.open(seal_model(tmp_path / "bundle", model, steps=1000).path) as session:
        for row in x.numpy():
            before = [np.array(session.state(f"layers.{i}.h")[0]) for i in range(CONFIG.layers)]
            session.step(x=row)
            is_open = session.gates["write"][0] > np.float32(model.threshold)
            for i, old in enumerate(before):
                kept = (session.state(f"layers.{i}.h")[0] == old).all(axis=(1, 2))
                assert np.array_equal(kept, ~is_open[i])
            openings += int(is_open.sum())
        ledger = session.ledger
    assert ledger.gate_openings == {"write": openings}
    matrix = 4 * CONFIG.head_dim * CONFIG.state_dim
    written = sum(n for name, n in ledger.state_bytes_written.items() if name.endswith(".h"))
    assert openings * matrix - CONFIG.layers < written <= openings * matrix


@pytest.mark.slow
def test_three_sessions_in_one_graph_stand_alone(seal_model, tmp_path) -> None:
    model = stack()
    model.threshold = median_dt(model, stream(100))
    bundle = seal_model(tmp_path / "bundle", model, steps=100, sessions=3)
    assert bundle.manifest.sessions == 3
    assert bundle.manifest.step.state_bytes == 3 * CONFIG.step_spec().state_bytes


@pytest.mark.slow
def test_softplus_of_the_exported_graph_is_right_where_dt_is_tiny(seal_model, tmp_path) -> None:
    config = replace(CONFIG, heads=64, head_dim=1, layers=1)
    model = stack(config)
    with torch.no_grad():
        model.mixers[0].dt_bias.copy_(torch.linspace(-30.0, 30.0, 64))
    with Session.open(seal_model(tmp_path / "bundle", model).path) as session:
        for x in random_episode(model.step_spec(), 20):
            session.step(**x)
            u = model.norms[0](model.encode(torch.from_numpy(x["x"])))
            raw = (model.mixers[0].in_proj(u)[:, -64:] + model.mixers[0].dt_bias).detach().double()
            expected = torch.logaddexp(raw, torch.zeros(())).numpy()
            np.testing.assert_allclose(session.gates["write"][0], expected, rtol=3e-5)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"groups": 3}, "groups must not be 3[\\s\\S]*divisor of heads=4"),
        ({"heads": 0}, "heads must not be 0"),
        ({"features": 0}, "features must not be 0"),
        ({"conv_width": 1}, "conv_width[\\s\\S]*zero weights"),
        ({"dt_min": 0.5, "dt_max": 0.1}, "dt_max must not be 0.1[\\s\\S]*dt_min=0.5[\\s\\S]*None"),
        ({"dt_min": math.nan}, "dt_min"),
        ({"dt_max": 0.0}, "dt_max"),
        ({"norm_eps": 0.0}, "norm_eps[\\s\\S]*1e-5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_field(change: dict, finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        replace(CONFIG, **change)
