"""The delta family against flash-linear-attention's and transformers' torch code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract.errors import SpecError
from stategate.models.memories.delta.cell import CHUNK, Carried, Tokens, chunk, step
from stategate.models.memories.delta.config import PUBLISHED, DeltaConfig
from stategate.models.memories.delta.layer import DeltaLayer
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.operators import Operators
from stategate.models.step import commit, initial_states, threshold_inputs

GDN2 = DeltaConfig(
    width=24,
    heads=2,
    value_heads=4,
    key_dim=8,
    value_dim=6,
    decay_gate="channel",
    write_gate="vector",
    decay_lower_bound=None,
    negative_eigenvalues=False,
    output_gate="low_rank_bias",
    output_activation="silu",
    norm_eps=1e-5,
    conv_width=4,
    layout="key, value",
    skip_by="gate",
)
KDA = replace(GDN2, write_gate="scalar", value_heads=2, output_gate="low_rank")
KDA_BOUNDED = replace(KDA, decay_lower_bound=-5.0, negative_eigenvalues=True)
GDN = replace(GDN2, decay_gate="head", write_gate="scalar", output_gate="full")
GDP = replace(GDN, updates=3, negative_eigenvalues=True)
FAMILY = [GDN, KDA, KDA_BOUNDED, GDN2, GDP]
ALWAYS = torch.tensor([0.0])


def tokens(config: DeltaConfig, time: int, seed: int = 0) -> Tokens:
    """Random projections ``(1, time, value heads, ...)``."""
    rng = torch.Generator().manual_seed(seed)
    shape = (1, time, config.value_heads)
    each = shape if config.updates == 1 else (*shape, config.updates)
    q, k = (torch.randn(*s, config.key_dim, generator=rng) for s in (shape, each))
    b = torch.rand(*each, config.key_dim, generator=rng)
    w = torch.rand(*each, config.value_dim, generator=rng)
    if config.write_gate == "scalar":
        b = w = b[..., :1] * (1.0 + config.negative_eigenvalues)
    return Tokens(
        q / q.norm(dim=-1, keepdim=True),
        k / k.norm(dim=-1, keepdim=True),
        torch.randn(*each, config.value_dim, generator=rng),
        -3.0 * torch.rand(*shape, config.decay_dim, generator=rng) ** 4,
        b,
        w,
    )


def empty(config: DeltaConfig) -> Carried:
    return Carried(
        torch.zeros(1, config.value_heads, config.key_dim, config.value_dim),
        torch.zeros(1, config.value_heads, config.decay_dim),
    )


def by_step(
    seen: Tokens, carried: Carried, threshold: torch.Tensor = ALWAYS, skip_by: str = "gate"
) -> tuple[torch.Tensor, Carried, torch.Tensor]:
    reads, gates = [], []
    for t in range(seen.q.shape[1]):
        done = step(Tokens(*(part[:, t] for part in seen)), carried, threshold, skip_by)
        carried = done.carried
        reads.append(done.o)
        gates.append(done.gate)
    return torch.stack(reads, 1), carried, torch.stack(gates, 1)


def decayed(carried: Carried) -> torch.Tensor:
    """The matrix that the next read sees."""
    return carried.S * torch.exp(carried.log_decay).unsqueeze(-1)


def oracle(
    config: DeltaConfig, naive: Callable[[str], ModuleType], seen: Tokens, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v, g, b, w = seen
    if config.family == "gated_deltaproduct":  # published with one update after the other
        k, v, b = (x.transpose(2, 3).flatten(1, 2) for x in (k, v, b))
        run = naive("gated_delta_product").naive_recurrent_gated_delta_product
        scale = config.key_dim**-0.5
        return run(q, k, v, g[..., 0], b[..., 0], scale, None, None, True, config.updates)
    if config.family == "gated_deltanet2":
        run = getattr(naive("gdn2"), f"naive_{form}_gdn2")
        return run(q, k, v, g, b, w, output_final_state=True)
    if config.family == "kda":
        run = getattr(naive("kda"), f"naive_{form}_kda")
        return run(q, k, v, g, b[..., 0], output_final_state=True)
    run = getattr(naive("gated_delta_rule"), f"naive_{form}_gated_delta_rule")
    kwargs = {"beta": b[..., 0], "g": g[..., 0], "output_final_state": True}
    return run(q, k, v, **kwargs)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@pytest.mark.parametrize("config", FAMILY, ids=lambda c: c.family)
def test_the_cell_is_the_published_recurrence(
    fla_naive: Callable[[str], ModuleType], config: DeltaConfig, form: str
) -> None:
    seen = tokens(config, 128)
    reads, carried, _ = by_step(seen, empty(config))
    theirs, state = oracle(config, fla_naive, seen, form)
    # Their chunk form sums in another order, and doubled erase gates hardly damp the difference.
    torch.testing.assert_close(reads, theirs, atol=5e-6, rtol=0)
    torch.testing.assert_close(decayed(carried), state, atol=5e-6, rtol=0)


@pytest.mark.parametrize("config", FAMILY, ids=lambda c: c.family)
def test_skipped_writes_are_the_recurrence_without_them(
    fla_naive: Callable[[str], ModuleType], config: DeltaConfig
) -> None:
    seen = tokens(config, 96)
    largest_of = config.updates > 1 or config.write_gate == "vector"
    threshold = torch.tensor([0.9 * (1 + config.negative_eigenvalues) if largest_of else 0.5])
    reads, carried, gates = by_step(seen, empty(config), threshold)
    closed = (gates <= threshold).unsqueeze(-1)
    closed = closed.unsqueeze(-1) if config.updates > 1 else closed
    assert 0.1 < closed.float().mean() < 0.9
    nothing = seen._replace(b=seen.b.masked_fill(closed, 0.0), w=seen.w.masked_fill(closed, 0.0))
    theirs, state = oracle(config, fla_naive, nothing, "recurrent")
    torch.testing.assert_close(reads, theirs, atol=2e-6, rtol=0)
    torch.testing.assert_close(decayed(carried), state, atol=2e-6, rtol=0)


@pytest.mark.parametrize("skip_by", ["gate", "update"])
def test_a_closed_head_keeps_its_matrix_bit_for_bit(skip_by: str) -> None:
    seen = tokens(GDN2, 40)
    before = by_step(seen, empty(GDN2))[1]
    last = Tokens(*(part[:, 7] for part in seen))
    gate = step(last, before, ALWAYS, skip_by).gate
    threshold = gate.flatten().median().reshape(1)
    after = step(last, before, threshold, skip_by).carried
    kept = (after.S == before.S).flatten(2).all(-1)
    assert torch.equal(kept, gate <= threshold)
    assert 0 < int(kept.sum()) < kept.numel()


def test_skipping_by_the_update_makes_an_error_of_its_norm() -> None:
    seen = tokens(GDN2, 40)
    before = by_step(seen, empty(GDN2))[1]
    last = Tokens(*(part[:, 7] for part in seen))
    written = step(last, before, ALWAYS, "update")
    skipped = step(last, before, torch.tensor([1e9]), "update")
    missed = (decayed(written.carried) - decayed(skipped.carried)).flatten(2).norm(dim=-1)
    torch.testing.assert_close(missed, written.gate, atol=1e-6, rtol=1e-5)


def test_skipping_several_updates_makes_an_error_of_their_common_norm() -> None:
    stream = tokens(GDP, 40)
    before = by_step(stream, empty(GDP))[1]
    last = Tokens(*(part[:, 7] for part in stream))
    written = step(last, before, ALWAYS, "update")
    skipped = step(last, before, torch.tensor([1e9]), "update")
    assert torch.equal(skipped.carried.S, before.S)
    missed = (decayed(written.carried) - decayed(skipped.carried)).flatten(2).norm(dim=-1)
    torch.testing.assert_close(missed, written.gate, atol=2e-6, rtol=1e-5)


def test_a_stack_has_its_former_name_for_a_version() -> None:
    from stategate.models.memories import stack
    from stategate.models.memories.delta import config

    with pytest.warns(DeprecationWarning, match="stack.StackConfig"):
        assert config.DeltaStackConfig is stack.StackConfig
    with pytest.warns(DeprecationWarning, match="stack.Stack"):
        from stategate.models.memories.delta.stack import DeltaStack
    assert DeltaStack is stack.Stack


@pytest.mark.slow
@given(
    config=st.sampled_from(FAMILY),
    length=st.integers(1, CHUNK),
    history=st.integers(0, 20),
    threshold=st.sampled_from([0.0, 0.5, 0.9, 1.1]),
    seed=st.integers(0, 5),
)
def test_a_chunk_of_any_length_is_as_many_steps(
    config: DeltaConfig, length: int, history: int, threshold: float, seed: int
) -> None:
    seen, level = tokens(config, history + CHUNK, seed), torch.tensor([threshold])
    before = (
        by_step(Tokens(*(p[:, :history] for p in seen)), empty(config), level)[1]
        if (history)
        else empty(config)
    )
    now = Tokens(*(part[:, history:] for part in seen))
    reads, carried, gates = by_step(Tokens(*(p[:, :length] for p in now)), before, level)
    done = chunk(now, before, level, torch.arange(CHUNK)[None] < length)
    torch.testing.assert_close(done.o[:, :length], reads, atol=1e-5, rtol=0)
    torch.testing.assert_close(tuple(done.carried), tuple(carried), atol=1e-5, rtol=0)
    assert torch.equal(done.gate[:, :length], gates)
    closed = ~(gates > level).any(1)
    assert torch.equal(done.carried.S[closed], before.S[closed])


def test_a_chunk_of_the_fastest_decay_does_not_overflow() -> None:
    seen = tokens(KDA, CHUNK)
    fast = seen._replace(g=torch.full_like(seen.g, -60.0))
    done = chunk(fast, empty(KDA), ALWAYS, torch.ones(1, CHUNK, dtype=torch.bool))
    torch.testing.assert_close(done.o, by_step(fast, empty(KDA))[0], atol=1e-6, rtol=0)


def test_a_slow_decay_keeps_its_digits_behind_a_fast_one_in_the_same_chunk() -> None:
    seen = tokens(KDA, CHUNK)
    g = torch.full_like(seen.g, -1e-3)
    g[:, :4] = -1e5
    mixed = seen._replace(g=g)
    done = chunk(mixed, empty(KDA), ALWAYS, torch.ones(1, CHUNK, dtype=torch.bool))
    reads, carried, _ = by_step(mixed, empty(KDA))
    torch.testing.assert_close(done.o, reads, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tuple(done.carried), tuple(carried), atol=1e-6, rtol=1e-5)


def run_layer(layer: DeltaLayer, x: torch.Tensor) -> torch.Tensor:
    states = tuple(torch.zeros(s.shape) for s in layer.config.states())
    out = []
    for t in range(x.shape[1]):
        y, states, _ = layer.step(x[:, t], states, ALWAYS)
        out.append(y)
    return torch.stack(out, 1)


@pytest.mark.usefixtures("no_fla")
@torch.no_grad()
def test_a_gated_deltanet_layer_is_that_of_qwen() -> None:
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    torch.manual_seed(3)
    theirs = Qwen3_5GatedDeltaNet(
        Qwen3_5TextConfig(
            hidden_size=24,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=6,
            rms_norm_eps=1e-5,
        ),
        0,
    ).eval()
    theirs.norm.weight.uniform_(0.5, 1.5)
    layer = DeltaLayer(GDN)
    for ours, copied in (
        (layer.to_qkv.weight, theirs.in_proj_qkv.weight),
        (layer.conv, theirs.conv1d.weight.squeeze(1)),
        (layer.to_decay.weight, theirs.in_proj_a.weight),
        (layer.A_log, theirs.A_log),
        (layer.dt_bias, theirs.dt_bias),
        (layer.to_erase.weight, theirs.in_proj_b.weight),
        (layer.to_gate.weight, theirs.in_proj_z.weight),
        (layer.norm, theirs.norm.weight),
        (layer.to_out.weight, theirs.out_proj.weight),
    ):
        ours.copy_(copied)
    x = torch.randn(1, 70, 24)
    torch.testing.assert_close(run_layer(layer, x), theirs(x), atol=5e-6, rtol=0)


@pytest.mark.usefixtures("no_fla")
@torch.no_grad()
def test_a_kda_layer_is_that_of_kimi_linear() -> None:
    from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    torch.manual_seed(4)
    theirs = KimiLinearDeltaAttention(
        KimiLinearConfig(
            hidden_size=24,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            linear_head_dim=8,
            linear_num_heads=2,
            rms_norm_eps=1e-5,
        ),
        0,
    ).eval()
    theirs.forget_gate.A_log.uniform_(0.0, 2.0)
    theirs.forget_gate.dt_bias.uniform_(-4.0, -1.0)
    layer = DeltaLayer(replace(KDA, value_dim=8, output_activation="sigmoid"))
    projections = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    for ours, copied in (
        (layer.to_qkv.weight, torch.cat([p.weight for p in projections])),
        (layer.conv, theirs.conv1d.weight.squeeze(1)),
        (layer.to_decay[0].weight, theirs.forget_gate.f_a_proj.weight),
        (layer.to_decay[1].weight, theirs.forget_gate.f_b_proj.weight),
        (layer.A_log, theirs.forget_gate.A_log.flatten()),
        (layer.dt_bias, theirs.forget_gate.dt_bias),
        (layer.to_erase.weight, theirs.b_proj.weight),
        (layer.to_gate[0].weight, theirs.g_a_proj.weight),
        (layer.to_gate[1].weight, theirs.g_b_proj.weight),
        (layer.norm, theirs.o_norm.weight),
        (layer.to_out.weight, theirs.o_proj.weight),
    ):
        ours.copy_(copied)
    x = torch.randn(1, 70, 24)
    torch.testing.assert_close(run_layer(layer, x), theirs(x), atol=5e-6, rtol=0)


@torch.no_grad()
def test_a_gated_deltaproduct_layer_has_the_published_order_of_updates_and_heads(
    fla_naive: Callable[[str], ModuleType],
) -> None:
    torch.manual_seed(5)
    c, layer, x = GDP, DeltaLayer(GDP), torch.randn(1, 40, 24)
    columns = torch.nn.functional.pad(layer.to_qkv(x).mT, (c.conv_width - 1, 0))
    mixed = torch.nn.functional.conv1d(columns, layer.conv[:, None], groups=c.conv_channels)
    q, k, v = torch.nn.functional.silu(mixed).mT.split((16, 48, 72), dim=-1)
    k, v = (  # as weights have them: updates, heads, channels
        y.reshape(1, 40 * 3, heads, -1) for y, heads in ((k, c.heads), (v, c.value_heads))
    )
    q, k = (
        (y * torch.rsqrt((y * y).sum(-1, keepdim=True) + 1e-6)).repeat_interleave(2, dim=2)
        for y in (q.reshape(1, 40, c.heads, -1), k)
    )
    dt = torch.nn.functional.softplus(layer.to_decay(x) + layer.dt_bias)
    beta = 2 * torch.sigmoid(layer.to_erase(x)).reshape(1, 40 * 3, c.value_heads)
    run = fla_naive("gated_delta_product").naive_recurrent_gated_delta_product
    o, _ = run(q, k, v, -layer.A_log.exp() * dt, beta, 8**-0.5, num_householder=3)
    o = torch.nn.functional.rms_norm(o, (6,), layer.norm, 1e-5)
    o = o * torch.nn.functional.silu(layer.to_gate(x).reshape(1, 40, 4, 6))
    torch.testing.assert_close(run_layer(layer, x), layer.to_out(o.flatten(2)), atol=5e-6, rtol=0)


def stack(config: DeltaConfig, threshold: float = 0.0) -> Stack:
    torch.manual_seed(11)
    return Stack(StackConfig(5, 3, 2, 16, config, threshold)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("config", FAMILY, ids=lambda c: c.family)
@pytest.mark.parametrize("layout", ["key, value", "value, key"])
@torch.no_grad()
def test_a_stack_by_ragged_chunks_is_the_stack_by_steps(config: DeltaConfig, layout: str) -> None:
    model = stack(replace(config, layout=layout), 0.55)
    spec, x = model.step_spec(), torch.randn(45, 1, 5)
    fixed = threshold_inputs(spec)
    stepped, chunked = initial_states(model), initial_states(model)
    answers = []
    for row in x:
        result = model.step({"x": row, **fixed}, stepped)
        stepped = commit(spec, stepped, result)
        answers.append(result.outputs["y"])
    chunks, start = [], 0
    for length in (16, 3, 16, 1, 9):
        padded = torch.zeros(1, CHUNK, 5)
        padded[0, :length] = x[start : start + length, 0]
        valid = torch.arange(CHUNK)[None] < length
        result = model.chunk({"x": padded, **fixed}, chunked, valid)
        chunked = dict(result.states)
        chunks.append(result.outputs["y"][0, :length])
        start += length
    torch.testing.assert_close(torch.cat(chunks), torch.cat(answers), atol=1e-5, rtol=0)
    torch.testing.assert_close(chunked, stepped, atol=1e-5, rtol=0)


BY_UPDATE = replace(GDN2, skip_by="update")


@pytest.mark.slow
@pytest.mark.corners("config5-*")
@pytest.mark.parametrize(
    ("config", "level", "operators"),
    [
        (GDN, 0.7, Operators.PORTABLE),
        (GDN, 0.7, Operators.ORT),
        (KDA, 0.6, Operators.PORTABLE),
        (KDA, 0.6, Operators.ONNX_27),
        (BY_UPDATE, 0.6, Operators.PORTABLE),
        (BY_UPDATE, 0.6, Operators.ORT),
    ],
)
def test_a_bundle_behaves_like_the_stack_with_every_kind_of_operators(
    seal_model: Callable, tmp_path: Path, config: DeltaConfig, level: float, operators: Operators
) -> None:
    bundle = seal_model(tmp_path / "b", stack(config, level), steps=1000, operators=operators.value)
    receipt = bundle.manifest.verification
    assert receipt.gate_openings["write"] not in (0, 1000)
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5
    graph = bundle.manifest.step_graph
    assert graph.domains == (("com.microsoft",) if operators is Operators.ORT else ())
    assert graph.opset == (27 if operators is Operators.ONNX_27 else 20)
    has_chunk = config.skip_by == "gate"
    assert (bundle.manifest.chunk_graph is not None) == has_chunk
    assert (receipt.max_chunk_error is not None) == has_chunk


@torch.no_grad()
def test_a_threshold_of_zero_is_the_plain_model() -> None:
    plain, skipping = stack(KDA), stack(KDA, 0.5)
    x = torch.randn(30, 1, 5)
    for level, same in ((0.0, True), (0.5, False)):
        ours, theirs = initial_states(plain), initial_states(skipping)
        gaps = []
        for row in x:
            one = plain.step({"x": row, "threshold": ALWAYS}, ours)
            other = skipping.step({"x": row, "threshold": torch.tensor([level])}, theirs)
            ours, theirs = one.states, other.states
            gaps.append(float((one.outputs["y"] - other.outputs["y"]).abs().max()))
        assert (max(gaps) == 0.0) is same


# Bytes as published: matrices in float32, convolution columns in bfloat16 (16 bits each).
@pytest.mark.parametrize(
    ("name", "matrices", "columns"),
    [
        ("gdn2-1.3b", 18_874_368, 663_552),
        ("gdn-fla-default", 66_060_288, None),
        # Householder updates share one matrix; keys and values of each pass the convolution.
        ("gdp-fla-default", 66_060_288, 21 * 3 * 2 * (3 * 6 * 256 + 2 * 6 * 512)),
        ("qwen3-next-80b-a3b", 75_497_472, None),
        ("kda-fla-default", 24 << 20, None),
        ("kimi-linear-48b-a3b", 41_943_040, 1_474_560),
    ],
)
def test_published_memories_have_their_published_size(
    name: str, matrices: int, columns: int | None
) -> None:
    states = PUBLISHED[name].step_spec().states
    assert sum(s.bytes for s in states if s.name.endswith(".S")) == matrices
    if columns is not None:
        assert sum(s.bytes // 2 for s in states if s.name.endswith(".conv")) == columns


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"value_heads": 3}, "value_heads"),
        ({"decay_gate": "head"}, "decay_gate must not be 'head'[\\s\\S]*write_gate='vector'"),
        ({"decay_lower_bound": 5.0}, "decay_lower_bound"),
        ({"output_activation": "gelu"}, "output_activation"),
        ({"conv_width": 1}, "conv_width"),
        ({"heads": 0}, "heads"),
        ({"key_dim": 8.0}, "key_dim"),
        ({"layout": "kv"}, "layout"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"updates": 2}, "updates must not be 2"),
        ({"negative_eigenvalues": 2}, "negative_eigenvalues"),
    ],
)
def test_what_the_cell_cannot_express_is_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        replace(GDN2, **change)


def test_nothing_that_changes_the_numbers_has_a_default() -> None:
    with pytest.raises(TypeError, match="output_activation"):
        DeltaConfig(width=8, heads=1, value_heads=1, key_dim=8, value_dim=8)  # type: ignore[call-arg]


def test_the_update_of_a_published_dt_range_stays_finite_for_long() -> None:
    model = stack(GDN2, 1e9)
    states = initial_states(model)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((500, 1, 5)).astype(np.float32))
    for row in x:
        result = model.step({"x": row, "threshold": torch.tensor([1e9])}, states)
        states = result.states
    assert all(bool(s.isfinite().all()) for s in states.values())
    assert all(bool((states[f"layers.{i}.S"] == 0).all()) for i in range(2))


@pytest.mark.slow
@pytest.mark.corners("portable")
@pytest.mark.parametrize("operators", [Operators.PORTABLE, Operators.ORT])
def test_saturated_gates_are_open_at_a_threshold_of_zero_in_every_engine(
    seal_model: Callable, tmp_path: Path, operators: Operators
) -> None:
    model = stack(KDA)
    with torch.no_grad():
        for block in model.blocks:
            block.delta.to_erase.weight.mul_(300.0)
    bundle = seal_model(tmp_path / "b", model, steps=60, operators=operators.value)
    assert bundle.manifest.verification.gate_openings == {"write": 60}


@pytest.mark.parametrize("beta", [0.9, 0.99, 1.5, 1.99])
def test_a_chunk_of_one_key_that_never_changes_is_as_many_steps(beta: float) -> None:
    seen = tokens(GDN, CHUNK)
    same = seen._replace(
        k=seen.k[:, :1].expand_as(seen.k),
        b=torch.full_like(seen.b, beta),
        w=torch.full_like(seen.w, beta),
        g=torch.full_like(seen.g, -1e-3),
    )
    done = chunk(same, empty(GDN), ALWAYS, torch.ones(1, CHUNK, dtype=torch.bool))
    reads, carried, _ = by_step(same, empty(GDN))
    torch.testing.assert_close(done.o, reads, atol=1e-5, rtol=2e-5)
    torch.testing.assert_close(decayed(done.carried), decayed(carried), atol=1e-5, rtol=2e-5)
