"""TRIM-KV and SEGA as bundles: a thousand steps beside torch, and what their ledgers say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from stategate.contract import Bundle, StateSpec, StepSpec, TensorSpec
from stategate.export.frontends.trace import trace
from stategate.models.functions import log_sigmoid
from stategate.models.memories.sega import Sega, SegaConfig
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import TrimKvConfig
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session

ADMIT = TrimKvConfig(
    features=5,
    out_features=3,
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    memory=12,
    buffer=1,
    form="admit",
    gate_hidden=8,
    gate_bias=3.0,
    rope_theta=1e4,
    qk_norm=False,
    mlp=32,
    norm_eps=1e-6,
)
COMPACT = replace(ADMIT, form="append_compact", buffer=5)
SEGA = SegaConfig(tokens=8, obs_tokens=3, width=32, depth=2, heads=4, mlp=64, norm_eps=1e-5)


def built(config: TrimKvConfig | SegaConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if isinstance(config, SegaConfig):
            return Sega(config)
        model = TrimKv(config)
        for layer in model.layers:
            nn.init.normal_(layer.gate_out.weight, std=2.0)
        return model


@pytest.fixture(scope="module")
def admit(tmp_path_factory: pytest.TempPathFactory, seal_model: Callable[..., Bundle]) -> Bundle:
    return seal_model(tmp_path_factory.mktemp("admit") / "b", built(ADMIT), steps=1000)


def inputs_of(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    golden = bundle.golden()
    assert golden is not None
    return list(golden)


@pytest.mark.slow
def test_a_thousand_steps_of_admission_agree_and_no_gate_flips(admit: Bundle) -> None:
    receipt = admit.manifest.verification
    assert receipt is not None and receipt.steps == 1000 and receipt.gate_flips == 0
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5
    assert admit.manifest.model.kv_bytes_per_step == ADMIT.kv_bytes_per_step
    assert all("admit: 12 kept" in s.layout for s in admit.manifest.states if s.gate)


@pytest.mark.slow
@pytest.mark.parametrize("config", [COMPACT, replace(ADMIT, form="evict_one")])
def test_a_thousand_steps_of_eviction_agree_in_one_graph(
    config: TrimKvConfig, tmp_path: Path, seal_model: Callable[..., Bundle]
) -> None:
    bundle = seal_model(tmp_path / "b", built(config), steps=1000)
    receipt = bundle.manifest.verification
    assert receipt is not None and receipt.steps == 1000
    assert max(receipt.max_output_error, receipt.max_state_error) < 1e-5
    with Session.open(bundle.path) as session:
        stamps = []
        for inputs in inputs_of(bundle):
            session.step(**inputs)
            stamps.append(session.state("stamp").copy())
        ledger = session.ledger
    held = [int((stamp > 0).sum()) // 4 for stamp in stamps]
    assert max(held) == config.slots - 1 and min(held[config.slots :]) == config.memory
    heads, steps = config.layers * config.kv_heads, ledger.steps
    assert ledger.writes == steps and ledger.gate_openings == {}
    assert ledger.state_bytes_written["k"] == steps * heads * config.head_dim * 4
    assert ledger.state_bytes_written["log_beta"] == steps * heads * 4
    # Two stamps a step: one set, one cleared. A token that is freed at once changes none.
    changed = sum(int((a != b).sum()) for a, b in zip(stamps, stamps[1:], strict=False))
    assert steps * heads * 4 < changed * 4 < ledger.state_bytes_written["stamp"]


def test_a_head_that_admits_is_one_slot_in_the_ledger_and_in_memory(admit: Bundle) -> None:
    replaced = dict.fromkeys(("k", "v", "log_beta", "stamp"), 0)
    with Session.open(admit.path) as session:
        for inputs in inputs_of(admit):
            before = {name: session.state(name).copy() for name in replaced}
            session.step(**inputs)
            for name, old in before.items():
                changed = old != session.state(name)
                slots = changed.any(-1) if changed.ndim == 5 else changed
                replaced[name] += int(slots.sum()) * (old.shape[4] if old.ndim == 5 else 1) * 4
        ledger = session.ledger
    written = dict(ledger.state_bytes_written)
    assert written.pop("clock") == ledger.steps * (1 + 4) * 4
    assert written == replaced
    assert 0 < ledger.gate_openings["write"] < 0.9 * ledger.steps * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [replace(ADMIT, layers=1), replace(COMPACT, layers=1), replace(SEGA, depth=1)],
    ids=["admit", "compact", "sega"],
)
def test_three_sessions_share_a_graph_and_nothing_else(
    config: TrimKvConfig | SegaConfig, tmp_path: Path, seal_model: Callable[..., Bundle]
) -> None:
    bundle = seal_model(tmp_path / "b", built(config), steps=60, sessions=3)
    receipt = bundle.manifest.verification
    assert receipt is not None and "3 sessions alone" in receipt.reference
    with Pool.open(bundle.path) as pool:
        assert pool.capacity == 3


@pytest.mark.slow
def test_a_thousand_steps_of_sega_agree_and_closed_rows_are_left_alone(
    tmp_path: Path, seal_model: Callable[..., Bundle]
) -> None:
    model = built(replace(SEGA, threshold=0.5))
    bundle = seal_model(tmp_path / "b", model, steps=1000)
    receipt = bundle.manifest.verification
    assert receipt is not None and receipt.steps == 1000 and receipt.gate_flips == 0
    with Session.open(bundle.path) as session:
        assert np.array_equal(session.state("s"), model.start.detach().numpy())
        for inputs in inputs_of(bundle):
            old = session.state("s").copy()
            session.step(**inputs)
            kept = (session.state("s") == old).all(-1)
            assert np.array_equal(kept, session.gates["write"] <= 0.5)
        ledger = session.ledger
    assert SEGA.tokens < ledger.gate_openings["write"] < ledger.steps * SEGA.tokens
    assert ledger.state_bytes_written["s"] == ledger.gate_openings["write"] * SEGA.width * 4
    assert bundle.manifest.model.kv_bytes_per_step == SEGA.kv_bytes_per_step


class Retention(nn.Module):
    """log_beta alone, with a state that the contract asks for."""

    def step_spec(self) -> StepSpec:
        shape = (1, 4001)
        return StepSpec(
            (TensorSpec("x", shape),), (TensorSpec("y", shape),), (StateSpec("last", shape),)
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult(
            {"y": log_sigmoid(inputs["x"])}, {"last": inputs["x"] + 0.0 * states["last"]}, {}
        )


def test_retention_survives_the_engine_where_log_of_sigmoid_does_not() -> None:
    engine = onnxruntime.InferenceSession(trace(Retention()).SerializeToString())
    x = np.linspace(-80, 80, 4001, dtype=np.float32)[None]
    (y,) = engine.run(["y"], {"x": x, "last": np.zeros_like(x)})
    np.testing.assert_allclose(y, -np.logaddexp(0.0, -x.astype(np.float64)), rtol=2e-6)
