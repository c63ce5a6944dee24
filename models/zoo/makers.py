"""How each model of the zoo is built, before its weights are loaded.

The seeded ones do nothing useful. They have every moving part of their family at a size that
exports in seconds, so that a device, an engine or a tool can be tried on each kind of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from stategate.models.memories.aura import AuraMem
from stategate.models.memories.delta.config import DeltaConfig
from stategate.models.memories.fast_weights import TitansConfig, TttConfig
from stategate.models.memories.mamba2.cell import Mamba2
from stategate.models.memories.mamba2.config import Mamba2Config
from stategate.models.memories.mamba3 import Mamba3Config
from stategate.models.memories.recurrent.cell import MinGru, RecurrentStep
from stategate.models.memories.rwkv7 import Rwkv7, Rwkv7Config
from stategate.models.memories.sega import Sega, SegaConfig
from stategate.models.memories.stack import LayerConfig, Stack, StackConfig
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import TrimKvConfig
from stategate.models.memories.window import (
    ObservationRing,
    RingConfig,
    TokensConfig,
    WindowConfig,
)
from stategate.models.memories.xlstm import MlstmConfig, SlstmConfig
from stategate.models.zoo.binding_stream import FEATURES, VALUES

_SMALL = {"features": 16, "out_features": 4}

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
KDA = replace(
    GDN2,
    write_gate="scalar",
    decay_lower_bound=-5.0,
    output_gate="low_rank",
    output_activation="sigmoid",
)
_GDN = replace(
    GDN2, value_heads=4, decay_gate="head", write_gate="scalar", output_gate="full", norm_eps=1e-6
)
TRIM_KV = TrimKvConfig(
    **_SMALL,
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


def gdn2_hard() -> Stack:
    """Two Gated DeltaNet-2 layers of two 16 x 16 heads."""
    return Stack(StackConfig(FEATURES, VALUES, layers=2, mlp=64, layer=GDN2))


def gru_few() -> RecurrentStep:
    """A linear encoder, one GRU, a linear head."""
    encoder = nn.Sequential(nn.Linear(FEATURES, 64), nn.SiLU())
    return RecurrentStep(nn.GRU(64, 32), nn.Linear(32, VALUES), encoder)


def _stack(layer: LayerConfig, mlp: int = 128) -> Stack:
    return Stack(StackConfig(**_SMALL, layers=2, mlp=mlp, layer=layer))


@torch.no_grad()
def _mlstm() -> Stack:
    """Keys half as wide as values, as published; input gates that open now and then."""
    model = _stack(MlstmConfig(64, 2, 8, 16, 15.0, 1e-6))
    for block in model.blocks:
        block.memory.to_gates.bias[:2] = -2.0  # type: ignore[union-attr, operator]
    return model


@torch.no_grad()
def _mamba3() -> Stack:
    """Half of the columns turn, and steps are long enough to turn them."""
    model = _stack(Mamba3Config(64, 4, 32, 16, 4, "heavy_tail", 1e-4, 1e-5))
    for block in model.blocks:
        block.layer.dt_bias.uniform_(-3.0, 0.0)  # type: ignore[union-attr, operator]
    return model


@torch.no_grad()
def _trim_kv() -> TrimKv:
    """With retention gates that tell tokens apart: as drawn they hardly do, and admit all."""
    model = TrimKv(TRIM_KV)
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_in.weight", "gate_out.weight")):
            parameter.mul_(5.5)
    return model


def _recurrent(kind: type[nn.LSTM | nn.GRU]) -> RecurrentStep:
    return RecurrentStep(kind(16, 32, num_layers=2), nn.Linear(32, 4))


_RWKV7 = Rwkv7Config(64, 32, 8, 8, 8, 16, hidden=128, norm_eps=1e-5)
_MAMBA2 = Mamba2Config(
    **_SMALL,
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

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "aura-hard": AuraMem,
    "gdn2-hard": gdn2_hard,
    "gru-few": gru_few,
    "gated-deltanet": partial(_stack, _GDN),
    "kda": partial(_stack, KDA),
    "gated-deltaproduct": partial(_stack, replace(_GDN, updates=2, negative_eigenvalues=True)),
    "gated-deltanet2": partial(_stack, GDN2),
    "mlstm": _mlstm,
    "slstm": partial(_stack, SlstmConfig(32, 4, 1e-5), mlp=64),
    "rwkv7": partial(Rwkv7, StackConfig(**_SMALL, layers=2, mlp=None, layer=_RWKV7)),
    "ttt-linear": partial(_stack, TttConfig(64, 2, 16, 1e-5)),
    "titans": partial(_stack, TitansConfig(64, 2, 16, 1e-5)),
    # Two sinks and six tokens of each layer, all heads alike.
    "window": partial(_stack, WindowConfig(64, 4, 2, 16, 2, 6, 1e4, 1e-6, energy=True)),
    "memory-tokens": partial(_stack, TokensConfig(64, 8, 4, 1e-6)),
    "ring": partial(ObservationRing, RingConfig(**_SMALL, frames=8, hidden=64)),
    "mamba2": partial(Mamba2, _MAMBA2),
    "mamba3": _mamba3,
    "trim-kv": _trim_kv,
    "sega": partial(Sega, _SEGA),
    "lstm": partial(_recurrent, nn.LSTM),
    "gru": partial(_recurrent, nn.GRU),
    "mingru": partial(MinGru, 16, 32, 4, 2),
}
"""By the name in the catalogue; weights are drawn where a maker is called."""
