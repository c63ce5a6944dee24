"""Small models of every family with weights drawn from a seed.

They do nothing useful. They have every moving part of their family at a size that exports in
seconds, so that a device, an engine or a tool can be tried on each kind of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from stategate.contract import Episode
from stategate.models.memories.delta.config import PUBLISHED as DELTA
from stategate.models.memories.delta.config import DeltaConfig, DeltaStackConfig
from stategate.models.memories.delta.stack import DeltaStack
from stategate.models.memories.mamba2.cell import Mamba2
from stategate.models.memories.mamba2.config import PUBLISHED as MAMBA2
from stategate.models.memories.mamba2.config import Mamba2Config
from stategate.models.memories.recurrent.cell import MinGru, RecurrentStep
from stategate.models.memories.sega import PUBLISHED as SEGA
from stategate.models.memories.sega import Sega, SegaConfig
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import PUBLISHED as TRIM_KV
from stategate.models.memories.trim_kv.config import TrimKvConfig
from stategate.models.step import StepModel
from stategate.models.zoo.entry import Sized, ZooEntry

_FEATURES, _ANSWERS = 16, 4
_SEED = 2026

GDN2 = DeltaConfig(
    width=64,
    heads=2,
    value_heads=2,
    key_dim=16,
    value_dim=16,
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
_KDA = replace(
    GDN2,
    write_gate="scalar",
    decay_lower_bound=-5.0,
    output_gate="low_rank",
    output_activation="sigmoid",
)
_GDN = replace(
    GDN2,
    value_heads=4,
    decay_gate="head",
    write_gate="scalar",
    output_gate="full",
    norm_eps=1e-6,
)
_TRIM_KV = TrimKvConfig(
    features=_FEATURES,
    out_features=_ANSWERS,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    memory=32,
    buffer=1,
    form="admit",
    gate_hidden=32,
    gate_bias=4.0,
    rope_theta=1e4,
    qk_norm=True,
    mlp=128,
    norm_eps=1e-6,
)
_MAMBA2 = Mamba2Config(
    features=_FEATURES,
    out_features=_ANSWERS,
    d_model=64,
    layers=2,
    heads=4,
    head_dim=32,
    state_dim=16,
    groups=2,
    conv_width=4,
    dt_min=0.0,
    dt_max=None,
    norm_eps=1e-5,
)
_SEGA = SegaConfig(tokens=16, obs_tokens=3, width=32, depth=2, heads=4, mlp=128, norm_eps=1e-5)


def _of_family(family: str) -> dict[str, Sized]:
    return {name: c for name, c in DELTA.items() if c.layer.family == family}


def _entry(
    name: str,
    family: str,
    make: Callable[[], StepModel],
    kind: str,
    write: str,
    paper: str,
    published: Mapping[str, Sized] | None = None,
) -> ZooEntry:
    def build() -> StepModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = make()
        assert isinstance(model, nn.Module)
        model.eval()
        return model

    def episode(steps: int, seed: int) -> Episode:
        rng = np.random.default_rng(seed)
        inputs = build().step_spec().inputs
        return Episode(
            {t.name: rng.standard_normal((steps, *t.shape)).astype(t.dtype) for t in inputs}
        )

    summary = f"{kind}; weights from a seed, for trying things out"
    return ZooEntry(name, family, summary, write, paper, "seeded", build, episode, published or {})


def _stack(layer: DeltaConfig) -> Callable[[], StepModel]:
    return lambda: DeltaStack(DeltaStackConfig(_FEATURES, _ANSWERS, 2, 128, layer))


@torch.no_grad()
def _trim_kv() -> TrimKv:
    """With retention gates that tell tokens apart: as drawn they hardly do, and admit all."""
    model = TrimKv(_TRIM_KV)
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_in.weight", "gate_out.weight")):
            parameter.mul_(5.5)
    return model


_RANK_1 = "a rank-1 update k u^T of a head's matrix; decay is none, it is folded into the reads"
_CHANNEL = "every step; by channel where its gate is above a threshold, once one is calibrated"

ENTRIES = (
    _entry(
        "gated-deltanet",
        "gated_deltanet",
        _stack(_GDN),
        "two Gated DeltaNet layers, value heads grouped by two",
        _RANK_1,
        "arXiv:2412.06464",
        _of_family("gated_deltanet"),
    ),
    _entry(
        "kda",
        "kda",
        _stack(_KDA),
        "two KDA layers with bounded decay",
        _RANK_1,
        "arXiv:2510.26692",
        _of_family("kda"),
    ),
    _entry(
        "gated-deltanet2",
        "gated_deltanet2",
        _stack(GDN2),
        "two Gated DeltaNet-2 layers",
        _RANK_1,
        "arXiv:2605.22791",
        _of_family("gated_deltanet2"),
    ),
    _entry(
        "mamba2",
        "mamba2",
        lambda: Mamba2(_MAMBA2),
        "two Mamba-2 layers with two groups",
        "decay and update of a head's matrix together, where dt is above the threshold",
        "arXiv:2405.21060",
        MAMBA2,
    ),
    _entry(
        "trim-kv",
        "trim_kv",
        _trim_kv,
        "two attention layers of 32 slots with admission",
        "a token takes a slot of a key-value head; one that is weaker than all is not admitted",
        "arXiv:2512.03324",
        TRIM_KV,
    ),
    _entry(
        "sega",
        "sega",
        lambda: Sega(_SEGA),
        "the state updater of SeedPolicy with 16 rows",
        "a token row is blended with its update, where its gate is above the threshold",
        "arXiv:2603.05117",
        SEGA,
    ),
    _entry(
        "lstm",
        "lstm",
        lambda: RecurrentStep(nn.LSTM(_FEATURES, 32, num_layers=2), nn.Linear(32, _ANSWERS)),
        "torch's own LSTM, two layers",
        _CHANNEL,
        "Neural Computation 9(8), 1997",
    ),
    _entry(
        "gru",
        "gru",
        lambda: RecurrentStep(nn.GRU(_FEATURES, 32, num_layers=2), nn.Linear(32, _ANSWERS)),
        "torch's own GRU, two layers",
        _CHANNEL,
        "arXiv:1406.1078",
    ),
    _entry(
        "mingru",
        "mingru",
        lambda: MinGru(_FEATURES, 32, _ANSWERS, 2),
        "two minGRU layers",
        _CHANNEL,
        "arXiv:2410.01201",
    ),
)  # fmt: skip
