"""Mamba-2: a matrix for each head that every step decays and adds to, both by one number, dt.

After arXiv:2405.21060 (T. Dao, A. Gu, 2024), written from its equations and from the layout of
its published checkpoints, whose weight names and shapes are kept. For one token, with W the width
of the convolution, heads of P values, N state columns, and head groups that share B and C:

    z, xBC, dt0 = in_proj u           xBC <- silu(conv_W(xBC) + bias)       x, B, C = xBC
    dt = clamp(softplus(dt0 + dt_bias), dt_min, dt_max)                     A = -exp(A_log)
    write   h <- exp(dt A) h + dt x B^T        of the heads where dt > threshold
    read    y = h C + D x,                     from h after that decision
    out     out_proj(RMSNorm_group(y * silu(z)))

dt is gain and decay at once, so a head with a small dt is skipped as a whole: it keeps h bit for
bit. Against the plain model that step injects at most |dt A| ||h|| + dt ||x|| ||B|| into h, in the
Frobenius norm. softplus is above zero, so a threshold of zero is the plain model. The columns of
the convolution are its inputs, before bias and activation; they move on every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from stategate.contract import StepSpec
from stategate.models.memories.mamba2.config import Mamba2Config
from stategate.models.memories.matrix import Matrix, Plain, Ring, Waiting
from stategate.models.step import StepResult, Tensors, opens

_DT_AT_START = (1e-3, 1e-1)  # where dt lies before training, log-uniform
_DECAY_AT_START = (1.0, 16.0)  # -A, uniform


def dt_bias_at_start(heads: int) -> Tensor:
    """What softplus makes a dt of that is log-uniform in its range."""
    low, high = (math.log(dt) for dt in _DT_AT_START)
    dt = torch.exp(torch.empty(heads).uniform_(low, high))
    return dt + torch.log(-torch.expm1(-dt))


class Projections(NamedTuple):
    """What a layer's step knows before it looks at h.

    Attributes:
        z: ``(rows, heads * P)``, the output's gate.
        x: ``(rows, heads, P)``.
        B: ``(rows, heads, N)``, the group's for each of its heads.
        C: ``(rows, heads, N)``.
        dt: ``(rows, heads)``, above zero.
        conv: ``(rows, channels, W - 1)``, the columns for the next step.
    """

    z: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    conv: Tensor


class _RmsNorm(nn.Module):
    """Root-mean-square norm with a weight, over groups of the last axis."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._groups, self._eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.unflatten(x, -1, (self._groups, -1))
        scale = torch.rsqrt((parts * parts).mean(-1, keepdim=True) + self._eps)
        return (parts * scale).flatten(-2) * self.weight


class _Conv(nn.Module):
    """Depthwise convolution at its last position."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, columns: Tensor) -> Tensor:
        # Not a Conv node: ONNX Runtime takes eight times as long for thousands of groups.
        return (columns * self.weight.squeeze(1)).sum(-1) + self.bias


class Mamba2Layer(nn.Module):
    """One mixer: ``(rows, d_model)`` in and out. Weights are named as in published checkpoints."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self._config = config
        inner, channels, heads = config.inner, config.conv_channels, config.heads
        self.in_proj = nn.Linear(config.d_model, inner + channels + heads, bias=False)
        self.conv1d = _Conv(channels, config.conv_width)
        self.dt_bias = nn.Parameter(dt_bias_at_start(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*_DECAY_AT_START).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = _RmsNorm(inner, config.groups, config.norm_eps)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)

    def project(self, u: Tensor, conv: Tensor) -> Projections:
        """Everything that does not need h.

        Args:
            u: ``(rows, d_model)``.
            conv: ``(rows, channels, W - 1)``.
        """
        c = self._config
        z, xBC, dt = torch.split(self.in_proj(u), [c.inner, c.conv_channels, c.heads], -1)
        columns = torch.cat((conv, xBC.unsqueeze(-1)), -1)
        shared = c.groups * c.state_dim
        x, B, C = torch.split(silu(self.conv1d(columns)), [c.inner, shared, shared], -1)
        dt = softplus(dt + self.dt_bias)
        # An unlimited end is left out: not every engine takes a clamp at infinity.
        if c.dt_min > 0.0:
            dt = dt.clamp(min=c.dt_min)
        if c.dt_max is not None:
            dt = dt.clamp(max=c.dt_max)
        x = torch.unflatten(x, -1, (c.heads, c.head_dim))
        return Projections(z, x, self._of_heads(B), self._of_heads(C), dt, columns[..., 1:])

    def _of_heads(self, shared: Tensor) -> Tensor:
        # Neighbouring heads share a group; tiling would pair heads with groups of others.
        c = self._config
        grouped = torch.unflatten(shared, -1, (c.groups, c.state_dim))
        return grouped.repeat_interleave(c.heads // c.groups, -2)

    def scan(self, p: Projections, h: Matrix, threshold: Tensor) -> tuple[Tensor, Any]:
        """What the heads say, ``(rows, heads, P)``, and what is left of h, keys first.

        Args:
            p: Of this token.
            h: ``(rows, heads, N, P)``.
            threshold: ``(1,)``.
        """
        # The exponent is never above zero, so nothing overflows however large dt is.
        decay = torch.exp(-torch.exp(self.A_log) * p.dt).unsqueeze(-1)
        u = p.dt.unsqueeze(-1) * p.x
        is_open = opens(p.dt, threshold).unsqueeze(-1)
        # The decision comes before the read: a head that is closed is read as it was.
        before = h.read(p.C.unsqueeze(-2), torch.where(is_open, decay, 1.0)).squeeze(-2)
        own = torch.where(is_open, (p.C * p.B).sum(-1, keepdim=True) * u, 0.0)
        return before + own + self.D.unsqueeze(-1) * p.x, h.after(decay, p.B, u, is_open)

    def out(self, p: Projections, y: Tensor) -> Tensor:
        """``(rows, d_model)`` from the read; gated before the norm, not after it."""
        out: Tensor = self.out_proj(self.norm(y.flatten(-2) * silu(p.z)))
        return out


class Mamba2(nn.Module):
    """A stack of residual layers as a step model: ``x (1, features)`` to ``y (1, out_features)``.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: Growth of the float32 key-value cache of as many attention layers of
            the same width.

    Args:
        config: Sizes.
        threshold: A head whose dt is not above it keeps its matrix; 0 is the plain model.
    """

    family = "mamba2"

    def __init__(self, config: Mamba2Config, threshold: float = 0.0) -> None:
        super().__init__()
        self.config, self.threshold = config, threshold
        self.kv_bytes_per_step = config.kv_bytes_per_step
        self.encode = nn.Linear(config.features, config.d_model)
        self.mixers = nn.ModuleList(Mamba2Layer(config) for _ in range(config.layers))
        self.norms = nn.ModuleList(
            _RmsNorm(config.d_model, 1, config.norm_eps) for _ in range(config.layers + 1)
        )
        self.head = nn.Linear(config.d_model, config.out_features)

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return self.config.step_spec(self.threshold)

    def rings(self) -> tuple[Ring, ...]:
        """One for the matrix of each layer; see `stategate.models.deferral`."""
        c = self.config
        sizes = (c.heads, 1, c.head_dim)
        layers = [f"layers.{i}." for i in range(c.layers)]
        return tuple(
            Ring(f"{at}ring", *sizes, {f"{at}h": c.state_dim}, value_first=True) for at in layers
        )

    def step(self, inputs: Tensors, states: Mapping[str, Any]) -> StepResult:
        """One step; a closed head gives its old matrix back, bit for bit."""
        u = self.encode(inputs["x"])
        after: dict[str, Any] = {}
        gates = []
        for i, mixer in enumerate(self.mixers):
            assert isinstance(mixer, Mamba2Layer)
            h = states[f"layers.{i}.h"]
            p = mixer.project(self.norms[i](u), states[f"layers.{i}.conv"])
            waits = isinstance(h, Waiting)
            y, h = mixer.scan(p, h if waits else Plain(h.transpose(-1, -2)), inputs["threshold"])
            u = u + mixer.out(p, y)
            h = h if waits else h.transpose(-1, -2)
            after |= {f"layers.{i}.h": h, f"layers.{i}.conv": p.conv}
            gates.append(p.dt)
        y = self.head(self.norms[-1](u))
        return StepResult({"y": y}, after, {"write": torch.stack(gates, -2)})
