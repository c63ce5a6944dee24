"""TRIM-KV beside the published package: its cache, attention, gate and decoder layer, on the CPU.

The package wants CUDA kernels and an older transformers at import. What is compared needs neither,
so both are stood in for while its modules load.
"""

from __future__ import annotations
import __future__ as future

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stategate.contract.errors import SpecError
from stategate.models.functions import log_sigmoid
from stategate.models.memories.trim_kv.cell import PERIOD, TrimKv
from stategate.models.memories.trim_kv.checkpoint import load_trimkv
from stategate.models.memories.trim_kv.config import PUBLISHED, TrimKvConfig
from stategate.models.step import StepResult, commit, initial_states, threshold_inputs

ADMIT = TrimKvConfig(
    features=5,
    out_features=3,
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    memory=16,
    buffer=1,
    form="admit",
    gate_hidden=16,
    gate_bias=3.0,
    rope_theta=1e4,
    qk_norm=True,
    mlp=48,
    norm_eps=1e-6,
)
EVICT = replace(ADMIT, form="evict_one")
COMPACT = replace(ADMIT, form="append_compact", buffer=7)
FORMS = pytest.mark.parametrize("config", [ADMIT, EVICT, COMPACT], ids=lambda c: c.form)


def built(config: TrimKvConfig, seed: int = 0) -> TrimKv:
    """A model whose retention differs from token to token, as a trained one's does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TrimKv(config)
        for layer in model.layers:
            nn.init.normal_(layer.gate_out.weight, std=0.8)
            nn.init.normal_(layer.gate_in.weight, std=0.5)
            nn.init.uniform_(layer.attention_norm.weight, 0.5, 1.5)
    return model.eval()


def observations(config: TrimKvConfig, steps: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(steps, 1, config.features, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def roll(
    model: TrimKv, xs: torch.Tensor, thresholds: dict[str, float] | None = None, clock: int = 0
) -> Iterator[tuple[StepResult, dict[str, torch.Tensor]]]:
    """Closed loop; each step's result and the states before it. Starts at position ``clock``."""
    spec, states = model.step_spec(), initial_states(model)
    rates = model.rates.long()
    states["clock"] = (rates * clock % PERIOD).to(torch.int32)[None]
    for x in xs:
        result = model.step({"x": x, **threshold_inputs(spec, thresholds)}, states)
        yield result, states
        states = commit(spec, states, result, thresholds)


@pytest.fixture(scope="module")
def published() -> SimpleNamespace:
    """The package's cache class, and a decoder layer of its Qwen3 with eager attention."""
    paths = {str(f): Path(str(f.locate())) for f in files("trimkv") or []}
    kernels, caches = ModuleType("trimkv.triton"), ModuleType("transformers.cache_utils")
    kernels.update_flatten_view_triton = None
    caches.Cache = caches.DynamicCache = type("DynamicCache", (), {})
    stand_ins = {
        "trimkv": ModuleType("trimkv"),
        "trimkv.triton": kernels,
        "transformers": ModuleType("transformers"),
        "transformers.cache_utils": caches,
    }

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"_oracle_{Path(path).stem}", paths[path])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        cache, attention = load("trimkv/cache_utils.py"), load("trimkv/attn/eager_attn.py")
    wanted = ("RMSNorm", "MLP", "RetentionGate", "Attention", "DecoderLayer", "rotate", "apply")
    tree = ast.parse(paths["trimkv/models/qwen3/modeling_trimkv_qwen3.py"].read_text())
    tree.body = [n for n in tree.body if any(w in getattr(n, "name", "") for w in wanted)]
    names = {
        **{"torch": torch, "nn": nn, "F": nn.functional, "ACT2FN": {"silu": nn.SiLU()}},
        **vars(cache),
        "get_attention_interface": lambda _: attention.eager_attention_forward,
    }
    exec(compile(tree, "qwen3", "exec", flags=future.annotations.compiler_flag), names)
    return SimpleNamespace(
        TrimKVCache=cache.TrimKVCache, DecoderLayer=names["TrimKVQwen3DecoderLayer"]
    )


class Oracle:
    """The published layers with a model's weights, on a growing and shrinking cache."""

    def __init__(self, published: SimpleNamespace, model: TrimKv) -> None:
        c = self.config = model.config
        self.model = model
        self.cache = published.TrimKVCache(memory_size=c.memory, buffer_size=c.buffer, device="cpu")
        settings = SimpleNamespace(
            hidden_size=c.width, head_dim=c.head_dim, num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads, attention_dropout=0.0, attention_bias=False,
            retention_gate="rg", retention_gate_intermediate_size=c.gate_hidden,
            retention_gate_bias_init=c.gate_bias, rms_norm_eps=c.norm_eps, hidden_act="silu",
            sliding_window=None, use_sliding_window=False, intermediate_size=c.mlp,
            layer_types=["full_attention"] * c.layers, _attn_implementation="attn_eager",
        )  # fmt: skip
        self.layers = [published.DecoderLayer(settings, i).eval() for i in range(c.layers)]
        for theirs, ours in zip(self.layers, model.layers, strict=True):
            w = dict(ours.named_parameters())
            gate, up = w["mlp_in.weight"].chunk(2)
            theirs.load_state_dict(
                {
                    "input_layernorm.weight": w["attention_norm.weight"],
                    "self_attn.q_proj.weight": w["to_q.weight"],
                    "self_attn.k_proj.weight": w["to_k.weight"],
                    "self_attn.v_proj.weight": w["to_v.weight"],
                    "self_attn.q_norm.weight": w["q_norm.weight"],
                    "self_attn.k_norm.weight": w["k_norm.weight"],
                    "self_attn.o_proj.weight": w["to_out.weight"],
                    "self_attn.retention_gate.linear1.weight": w["gate_in.weight"],
                    "self_attn.retention_gate.linear1.bias": w["gate_in.bias"],
                    "self_attn.retention_gate.linear2.weight": w["gate_out.weight"],
                    "self_attn.retention_gate.bias": w["gate_out.bias"],
                    "post_attention_layernorm.weight": w["mlp_norm.weight"],
                    "mlp.gate_proj.weight": gate,
                    "mlp.up_proj.weight": up,
                    "mlp.down_proj.weight": w["mlp_out.weight"],
                }
            )

    @torch.no_grad()
    def step(self, t: int, x: torch.Tensor) -> torch.Tensor:
        c = self.config
        inverse = 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angle = (t * inverse).repeat(2)[None, None]
        hidden = self.model.embed(x)[None]
        for layer in self.layers:
            hidden, *_ = layer(
                hidden,
                position_embeddings=(angle.cos(), angle.sin()),
                past_key_values=self.cache,
                cache_position=torch.tensor([t]),
            )
        self.cache.compress()
        return self.model.head(self.model.norm(hidden[0]))

    def kept(self, layer: int) -> dict[str, torch.Tensor]:
        cache = self.cache
        return {
            "pos": cache.kv_positions[layer][0],
            "log_beta": cache.retention_weights[layer][0],
            "k": cache.key_cache[layer][0],
            "v": cache.value_cache[layer][0],
        }


def kept(states: Any, layer: int) -> dict[str, torch.Tensor]:
    """What our slots hold, in the order of time, ``(kv heads, tokens, ...)``."""
    stamp = states["stamp"][0, layer]
    count = int((stamp[0] > 0).sum())
    order = stamp.argsort(dim=-1)[:, -count:]
    heads = torch.arange(len(order))[:, None]
    held = {name: states[name][0, layer][heads, order] for name in ("log_beta", "k", "v")}
    return {"pos": stamp[heads, order].long() - 1, **held}


@pytest.mark.slow
@FORMS
def test_outputs_and_kept_tokens_are_those_of_the_published_package(
    config: TrimKvConfig, published: SimpleNamespace
) -> None:
    model, xs = built(config), observations(config, 300)
    oracle = Oracle(published, model)
    own_choices = 0
    for t, (result, _) in enumerate(roll(model, xs)):
        x = xs[t]
        torch.testing.assert_close(result.outputs["y"], oracle.step(t, x), atol=5e-6, rtol=0)
        for layer in range(config.layers):
            ours, theirs = kept(result.states, layer), oracle.kept(layer)
            assert torch.equal(ours["pos"], theirs["pos"]), (t, layer)
            torch.testing.assert_close(ours["log_beta"], theirs["log_beta"], atol=0, rtol=2e-5)
            torch.testing.assert_close(ours["k"], theirs["k"], atol=5e-6, rtol=0)
            torch.testing.assert_close(ours["v"], theirs["v"], atol=5e-6, rtol=0)
            own_choices += bool((ours["pos"][0] != ours["pos"][1]).any())
    assert own_choices > 300  # each head its own tokens, or little was compared


@pytest.mark.slow
def test_admitting_and_evicting_give_the_same_answers_and_admitting_writes_less() -> None:
    xs = observations(ADMIT, 300)
    opened = 0
    for (a, _), (b, _) in zip(roll(built(ADMIT), xs), roll(built(EVICT), xs), strict=True):
        torch.testing.assert_close(a.outputs["y"], b.outputs["y"], atol=1e-6, rtol=0)
        opened += int((a.gates["write"] > 0).sum())
    assert opened < 0.9 * 300 * ADMIT.layers * ADMIT.kv_heads


@pytest.mark.slow
def test_buffered_eviction_keeps_other_tokens_than_evicting_each_step() -> None:
    xs = observations(ADMIT, 300)
    just_evicted = COMPACT.memory + 40 * COMPACT.buffer
    *_, (each, _) = roll(built(EVICT), xs[:just_evicted])
    *_, (buffered, _) = roll(built(COMPACT), xs[:just_evicted])
    assert not torch.equal(kept(each.states, 1)["pos"], kept(buffered.states, 1)["pos"])
    for result in (each, buffered):
        assert (result.states["stamp"] > 0).sum(-1).unique().tolist() == [ADMIT.memory]


@pytest.mark.slow
def test_a_closed_head_keeps_every_byte_and_an_open_one_replaces_one_slot() -> None:
    model, quiet, wrote = built(ADMIT), 0, 0
    for result, before in roll(model, observations(ADMIT, 200)):
        is_open = result.gates["write"][0] > 0
        for name in ("k", "v", "log_beta", "stamp"):
            old, new = (s[name][0].flatten(3) if s[name].dim() > 4 else s[name][0].unsqueeze(-1)
                        for s in (before, result.states))  # fmt: skip
            changed = (old != new).any(-1).sum(-1)
            assert torch.equal(changed, is_open.long()), name
        wrote += int(is_open.sum())
        quiet += int((~is_open).sum())
    assert wrote > 100 and quiet > 100


@pytest.mark.slow
def test_a_threshold_no_token_reaches_keeps_the_memory_for_ever() -> None:
    xs = observations(ADMIT, 120)
    states = [r.states for r, _ in roll(built(ADMIT), xs, {"write": 1e6})]
    full, last = states[ADMIT.memory - 1], states[-1]
    assert (full["stamp"] > 0).all()
    for name in ("k", "v", "log_beta", "stamp"):
        assert torch.equal(full[name], last[name])
    assert not torch.equal(full["clock"], last["clock"])


@FORMS
def test_a_slot_that_was_never_written_is_not_read(config: TrimKvConfig) -> None:
    model, x = built(config), observations(config, 1)[0]
    start = initial_states(model)
    garbage = {
        n: torch.randn_like(t) if n in ("k", "v", "log_beta") else t for n, t in start.items()
    }
    inputs = {"x": x, **threshold_inputs(model.step_spec())}
    with torch.no_grad():
        clean, dirty = model.step(inputs, start), model.step(inputs, garbage)
    assert torch.equal(clean.outputs["y"], dirty.outputs["y"])


@pytest.mark.slow
@FORMS
def test_the_clock_starts_again_after_a_billion_steps_and_nobody_notices(
    config: TrimKvConfig,
) -> None:
    """Only differences of positions count; the last of them crosses the end of the period."""
    model, xs = built(config), observations(config, 120)
    early = roll(model, xs)
    late = roll(model, xs, clock=PERIOD - 60)
    wrapped = False
    for (a, _), (b, before) in zip(early, late, strict=True):
        torch.testing.assert_close(a.outputs["y"], b.outputs["y"], atol=2e-5, rtol=0)
        assert torch.equal(a.states["stamp"] > 0, b.states["stamp"] > 0)
        for t in (b.states["clock"], before["clock"]):
            assert ((t >= 0) & (t < PERIOD)).all()
        wrapped |= bool(b.states["clock"][0, 0] < before["clock"][0, 0])
    assert wrapped
    torch.testing.assert_close(a.states["log_beta"], b.states["log_beta"], atol=0, rtol=1e-4)


def test_angles_are_right_where_a_float32_counter_stops_counting() -> None:
    steps = 1 << 24
    model = built(ADMIT)
    turned = (model.rates[1:].double() * steps % PERIOD) * (2 * np.pi / PERIOD)
    exact = np.float64(steps) * ADMIT.rope_theta ** (-2 * np.arange(4) / 8)
    apart = np.abs(np.exp(1j * turned.numpy()) - np.exp(1j * exact)).max()
    assert apart < 0.05 and np.float32(steps) + np.float32(1) == np.float32(steps)


def test_retention_is_right_where_log_of_sigmoid_is_not() -> None:
    x = torch.cat((torch.linspace(-100, 87, 20_001), torch.tensor([0.0, -1e30, 1e30])))
    exact = -np.logaddexp(0.0, -x.double().numpy())
    np.testing.assert_allclose(log_sigmoid(x).double().numpy(), exact, rtol=1e-6, atol=0)
    assert (torch.log(torch.sigmoid(torch.tensor([18.0]))) == 0).all()


@pytest.mark.parametrize(
    ("name", "kv", "each"),
    [
        ("qwen3-4b-256", 42_467_328, 331_776),
        ("qwen3-4b-512", 94_371_840, 737_280),
        ("qwen3-4b-1024", 169_869_312, 1_327_104),
    ],
)
def test_published_memories_have_their_published_bytes(name: str, kv: int, each: int) -> None:
    """Keys and values are quoted at two bytes an element; here they are float32, and twice that."""
    states = {s.name: s for s in PUBLISHED[name].step_spec().states}
    assert states["k"].bytes + states["v"].bytes == 2 * kv
    assert (states["log_beta"].bytes, states["stamp"].bytes) == (each, each)
    assert states["clock"].bytes == 4 * (1 + 64)
    assert all("append_compact" in states[n].layout for n in ("k", "v", "log_beta", "stamp"))


@FORMS
def test_a_model_says_what_its_configuration_says(config: TrimKvConfig) -> None:
    model = built(config)
    assert (model.family, model.form) == ("trim_kv", config.form)
    assert model.step_spec() == config.step_spec()
    assert model.kv_bytes_per_step == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"heads": 3}, "TrimKvConfig.heads must not be 3.*\n.*kv_heads=2"),
        ({"head_dim": 7}, "head_dim must not be 7.*\n.*even"),
        ({"form": "evict_some"}, "form must not be 'evict_some'.*\n.*'append_compact'"),
        ({"buffer": 4}, "buffer must not be 4[\\s\\S]*after each token"),
        ({"form": "append_compact"}, "buffer must not be 1.*\n.*2 or more"),
        ({"form": "evict_one", "threshold": 0.1}, "threshold must not be 0.1[\\s\\S]*admit"),
        ({"threshold": float("nan")}, "threshold must not be nan"),
        ({"memory": 0}, "memory must not be 0.*\n.*1 or more"),
        ({"layers": True}, "layers must not be True"),
        ({"layers": 2.0}, "layers must not be 2.0.*\n.*integer"),
        ({"rope_theta": 1.0}, "rope_theta must not be 1.0"),
        ({"gate_bias": "high"}, "gate_bias must not be 'high'.*\n.*finite"),
        ({"qk_norm": 1}, "qk_norm must not be 1.*\n.*True or False"),
        ({"norm_eps": 0.0}, "norm_eps must not be 0.0"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(change: dict, finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        replace(ADMIT, **change)


@torch.no_grad()
def test_a_checkpoint_of_the_package_steps_as_the_package_does(
    published: SimpleNamespace, tmp_path: Path
) -> None:
    model = built(COMPACT)
    oracle, c = Oracle(published, model), model.config
    weights = {
        f"model.layers.{i}.{name}": value.clone()
        for i, layer in enumerate(oracle.layers)
        for name, value in layer.state_dict().items()
    }
    gates = {name: weights.pop(name) for name in list(weights) if "retention_gate" in name}
    weights["model.norm.weight"] = model.norm.weight.clone()
    weights["lm_head.weight"] = torch.randn(11, c.width)
    settings = {
        "hidden_size": c.width, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "intermediate_size": c.mlp,
        "rms_norm_eps": c.norm_eps, "rope_parameters": {"rope_theta": c.rope_theta},
        "vocab_size": 11, "retention_gate": "rg", "attention_bias": False,
        "retention_gate_intermediate_size": c.gate_hidden, "retention_gate_bias_init": 10.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    torch.save(gates, tmp_path / "trimkv_weights.pth")
    with pytest.raises(SpecError, match="no weight 'model.layers.0.input_layernorm.weight'"):
        load_trimkv(tmp_path, memory=c.memory, buffer=c.buffer, form=c.form)
    save_file(weights, tmp_path / "model.safetensors")
    step = load_trimkv(tmp_path, memory=c.memory, buffer=c.buffer, form=c.form)
    model.embed, model.head = nn.Identity(), nn.Linear(c.width, 11, bias=False)
    model.head.weight.copy_(weights["lm_head.weight"])
    xs = torch.randn(40, 1, c.width)
    for t, (result, _) in enumerate(roll(step, xs)):
        torch.testing.assert_close(result.outputs["y"], oracle.step(t, xs[t]), atol=2e-5, rtol=1e-4)
    scaled = {"rope_theta": c.rope_theta, "rope_type": "yarn", "factor": 4.0}
    for other, named in (
        ({"retention_gate": "rg10"}, "another retention_gate"),
        ({"rope_parameters": scaled}, "another rope_scaling"),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear"}}, "another rope_scaling"),
        ({"num_hidden_layers": 1}, "no form here[\\s\\S]*model.layers.1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**settings, **other}))
        with pytest.raises(SpecError, match=named):
            load_trimkv(tmp_path, memory=c.memory, buffer=c.buffer, form=c.form)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    name = "model.layers.0.self_attn.q_proj"
    eighth = weights[f"{name}.weight"].to(torch.float8_e4m3fn)
    for more, named in (
        ({f"{name}.bias": torch.ones(32)}, "no form here[\\s\\S]*q_proj.bias"),
        ({f"{name}.weight": eighth}, "q_proj.weight' is quantised"),
    ):
        save_file({**weights, **more}, tmp_path / "model.safetensors")
        with pytest.raises(SpecError, match=named):
            load_trimkv(tmp_path, memory=c.memory, buffer=c.buffer, form=c.form)


@torch.no_grad()
def test_energy_is_a_score_of_its_own_for_which_no_hidden_layer_is_made() -> None:
    model = TrimKv(replace(ADMIT, gate_hidden=None)).eval()
    layer = model.layers[0]
    assert not [name for name, _ in model.named_parameters() if "gate_in" in name]
    results = [result for result, _ in roll(model, observations(ADMIT, 3))]
    x = model.embed(observations(ADMIT, 1)[0])
    energy = layer.gate_out(layer.attention_norm(x))
    first = results[0].states["log_beta"][:, 0, :, 0]
    torch.testing.assert_close(first, torch.nn.functional.logsigmoid(energy))
