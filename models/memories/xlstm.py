"""xLSTM: a matrix for each head (mLSTM), or a number for each channel (sLSTM); gates are exp.

After arXiv:2405.04517 (M. Beck et al., 2024), with the layer of xLSTM 7B (arXiv:2503.13427) for
mLSTM. The logarithm of what the memory is scaled by is a state of its own, the stabiliser m, so
that exp(i) never is formed. With f and i logits, of a head (mLSTM) or channel (sLSTM):

    faded = logsigmoid(f) + m                  m as it is where nothing is written
    top   = max(faded, i)
    write   C <- exp(faded - top) C + exp(i - top) k [v, 1]^T,   m <- top      mLSTM
            c <- exp(faded - top) c + exp(i - top) tanh(z)                     sLSTM, n alike with 1
    read    h = (q^T C) / max(|q^T n|, exp(-m)), n the last column of C        mLSTM
            h = sigmoid(o) c / n                                               sLSTM
    gate    i's share of both weights, exp(i) / (exp(i) + exp(faded)), in (0, 1)

Forgetting is no write: where the gate is closed m takes it, and C, c and n keep every byte. That is
the published step with an input gate of zero, exactly. But for rounding no exponent is above zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stategate.contract import StateSpec
from stategate.models.configuration import Rule
from stategate.models.functions import log_sigmoid, share
from stategate.models.memories.matrix import Ring, matrix_of
from stategate.models.memories.stack import LayerConfig, StackConfig, States, Stepped
from stategate.models.step import opens

_EPS = 1e-6  # of the published mLSTM's denominator
_LARGEST = 80.0  # exp of it is a float32; a memory that has faded so far reads as zero anyhow
_EMPTY = -1e4  # stabiliser of a channel that was never written: any input gate is above it


@dataclass(frozen=True, slots=True)
class MlstmConfig(LayerConfig):
    """One mLSTM layer as in xLSTM 7B.

    Attributes:
        width: Features of the layer's input and output.
        heads: How many.
        key_dim: Width of a key; half of a value's in the published model.
        value_dim: Width of a value.
        gate_cap: Gates' logits are ``cap tanh(logit / cap)``; None for no cap. 15 is published.
        norm_eps: Of the norm of each head.
    """

    kind: ClassVar[str] = "mlstm"
    width: int
    heads: int
    key_dim: int
    value_dim: int
    gate_cap: float | None
    norm_eps: float

    def rules(self) -> Iterator[Rule]:
        """Caps and norms are positive."""
        yield from LayerConfig.rules(self)
        yield Rule("gate_cap", self.gate_cap is None or self.gate_cap > 0, "more than 0, or None")

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk."""
        return 16

    @property
    def kv_bytes_per_step(self) -> int:
        """Of a float32 cache of one key and one value of each head."""
        return 4 * self.heads * (self.key_dim + self.value_dim)

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Matrix with its sum of keys, and stabiliser."""
        matrix = (1, self.heads, self.key_dim, self.value_dim + 1)
        layout = "head, key, value; the last column sums the keys"
        return (
            StateSpec(f"{prefix}C", matrix, gate="write", layout=layout),
            StateSpec(f"{prefix}m", (1, self.heads), layout="head"),
        )

    def ring(self, prefix: str = "") -> Ring:
        """What waits for the matrix."""
        return Ring(
            f"{prefix}ring", self.heads, 1, self.value_dim + 1, {f"{prefix}C": self.key_dim}
        )

    def build(self) -> nn.Module:
        """The layer."""
        return MlstmLayer(self)


class MlstmLayer(nn.Module):
    """See the module; states are matrix and stabiliser."""

    def __init__(self, config: MlstmConfig) -> None:
        super().__init__()
        self.config = c = config
        self.inner = c.heads * c.value_dim
        self.to_qkvo = nn.Linear(c.width, 2 * c.heads * c.key_dim + 2 * self.inner, bias=False)
        self.to_gates = nn.Linear(c.width, 2 * c.heads)  # input gates, then forget gates
        self.norm = nn.Parameter(torch.ones(self.inner))
        self.to_out = nn.Linear(self.inner, c.width, bias=False)
        with torch.no_grad():  # forget gates start nearly open, input gates nearly closed
            self.to_gates.bias[: c.heads] = -10.0
            self.to_gates.bias[c.heads :] = torch.linspace(3.0, 6.0, c.heads)

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token ``(rows, width)``: output, next states, gate ``(rows, heads)``."""
        (C, m), (q, k, v, i, f, o) = states, self._project(x)
        read, after, gate = mlstm_step(q, k, v, i, f, C, m, threshold)
        return self._out(read, o), after, gate

    def chunk(self, x: Tensor, states: States, threshold: Tensor, valid: Tensor) -> Stepped:
        """Several tokens ``(rows, time, width)``; the gate is ``(rows, time, heads)``.

        Args:
            x: After the norm of the block.
            states: As in `step`.
            threshold: ``(1,)``.
            valid: ``(rows, time)`` bool, true up to the last token that is meant.
        """
        (C, m), (q, k, v, i, f, o) = states, self._project(x)
        read, after, gate = mlstm_chunk(q, k, v, i, f, C, m, threshold, valid)
        return self._out(read, o), after, gate

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v by heads, logits of input and forget gates, and of the output's."""
        c = self.config
        keys = c.heads * c.key_dim
        q, k, v, o = torch.split(self.to_qkvo(x), [keys, keys, self.inner, self.inner], dim=-1)
        q, k, v = (y.reshape(*x.shape[:-1], c.heads, -1) for y in (q, k, v))
        logits = self.to_gates(x)
        if c.gate_cap is not None:
            logits = c.gate_cap * torch.tanh(logits / c.gate_cap)
        return q, k, v, *logits.chunk(2, dim=-1), o

    def _out(self, read: Tensor, o: Tensor) -> Tensor:
        out: Tensor = self.to_out(torch.sigmoid(o) * _normed(read, self.norm, self.config.norm_eps))
        return out


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C: Any, m: Tensor, threshold: Tensor
) -> Stepped:
    """The recurrence of the heads: reads ``(rows, heads, value)``, next states, gate.

    Args:
        q: ``(rows, heads, key)``; scaled here.
        k: ``(rows, heads, key)``.
        v: ``(rows, heads, value)``.
        i: Logit of the input gate, ``(rows, heads)``.
        f: Of the forget gate, likewise.
        C: ``(rows, heads, key, value + 1)``, or what waits in its place.
        m: ``(rows, heads)``.
        threshold: ``(1,)``.
    """
    matrix, q = matrix_of(C), q * q.shape[-1] ** -0.5
    forgets = log_sigmoid(f)
    faded = forgets + m
    gate, top = share(i - faded), torch.maximum(faded, i)
    is_open = opens(gate, threshold)
    m_before, m = m, torch.where(is_open, top, faded)
    is_open = is_open.unsqueeze(-1)
    decay = _decay(forgets, m_before, top).unsqueeze(-1)
    u = torch.exp(i - top).unsqueeze(-1) * torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    # The decision comes before the read: a closed head is read as it was.
    read = matrix.read(q.unsqueeze(-2), torch.where(is_open, decay, 1.0)).squeeze(-2)
    read = read + torch.where(is_open, (q * k).sum(-1, keepdim=True) * u, 0.0)
    return _answer(read, m), (matrix.after(decay, k, u, is_open), m), gate


def mlstm_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor,
    m: Tensor,
    threshold: Tensor,
    valid: Tensor,
) -> Stepped:
    """As many steps as ``time``, by matrix products; the loop is over one number a head.

    With m_t the stabiliser after token t and F_t the forgetting up to it, token j weighs
    exp(F_t - F_j + i_j - m_t) at t if it was written, and the memory before exp(m_0 + F_t - m_t):
    no exponent is above zero.

    Args:
        q: ``(rows, time, heads, key)``; others as in `mlstm_step`, with a time axis.
        k: Likewise.
        v: Likewise.
        i: Likewise.
        f: Likewise.
        C: As in `mlstm_step`.
        m: As in `mlstm_step`.
        threshold: ``(1,)``.
        valid: ``(rows, time)`` bool; other tokens change nothing.
    """
    forgets = torch.where(valid.unsqueeze(-1), log_sigmoid(f), 0.0)
    tops, gates, opened, top = [], [], [], m
    for t in range(q.shape[1]):
        faded = forgets[:, t] + top
        gates.append(share(i[:, t] - faded))
        opened.append(opens(gates[-1], threshold) & valid[:, t : t + 1])
        top = torch.where(opened[-1], torch.maximum(faded, i[:, t]), faded)
        tops.append(top)
    stabiliser, is_open = torch.stack(tops, dim=-1), torch.stack(opened, dim=-1)
    total = torch.cumsum(forgets, dim=1).mT  # this and those above are (rows, heads, time)
    times = torch.arange(q.shape[1], device=q.device)
    weighs = (times[:, None] >= times) & is_open.unsqueeze(-2)
    logs = total.unsqueeze(-1) - total.unsqueeze(-2) + i.mT.unsqueeze(-2) - stabiliser.unsqueeze(-1)
    weights = torch.exp(torch.where(weighs, logs, -_LARGEST)) * weighs
    before = _decay(total, m.unsqueeze(-1), stabiliser).unsqueeze(-1)
    q, k, v = (x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    values = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    read = torch.matmul(torch.matmul(q, k.mT) * weights, values) + torch.matmul(q * before, C)
    written = before[:, :, -1:] * C + torch.matmul((k * weights[:, :, -1:].mT).mT, values)
    C = torch.where(is_open.any(dim=-1)[..., None, None], written, C)
    h = _answer(read, stabiliser).transpose(1, 2)
    return h, (C, top), torch.stack(gates, dim=1)


def _decay(forgets: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What the memory is multiplied by when its stabiliser goes from one to the other.

    Both stabilisers are subtracted first, which is exact where they are near each other: what is
    too little for a stabiliser's last digit goes into the memory and is not lost.
    """
    return torch.exp((before - after) + forgets)


def _answer(read: Tensor, m: Tensor) -> Tensor:
    """What was read, over what its last column says it weighs."""
    least = torch.exp((-m).clamp(max=_LARGEST)).unsqueeze(-1)
    return read[..., :-1] / (torch.maximum(read[..., -1:].abs(), least) + _EPS)


@dataclass(frozen=True, slots=True)
class SlstmConfig(LayerConfig):
    """One sLSTM layer, without the convolution that may stand before its gates.

    Attributes:
        width: Features of the layer's input and output, and channels of its memory.
        heads: Blocks of channels that see each other.
        norm_eps: Of the norm of each head.
    """

    kind: ClassVar[str] = "slstm"
    granularity: ClassVar[Literal["head", "channel", "slot"]] = "channel"
    divided: ClassVar[bool] = True
    width: int
    heads: int
    norm_eps: float

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Cell and normaliser, which are guarded; output and stabiliser."""
        gates = {"c": "write", "n": "write", "h": None, "m": None}
        shape = (1, self.width)
        return tuple(
            StateSpec(f"{prefix}{name}", shape, gate=gate, layout="head, channel")
            for name, gate in gates.items()
        )

    def build(self) -> nn.Module:
        """The layer."""
        return SlstmLayer(self)


class SlstmLayer(nn.Module):
    """See the module; states are c, n, h and m."""

    def __init__(self, config: SlstmConfig) -> None:
        super().__init__()
        self.config = c = config
        head = c.width // c.heads
        # Gates i, f, z, o: each head's from its own block of channels, of input and output.
        self.inputs = nn.Parameter(torch.randn(4, c.heads, head, head) * head**-0.5)
        self.recurrent = nn.Parameter(torch.randn(4, c.heads, head, head) * 0.5 * head**-0.5)
        self.bias = nn.Parameter(torch.zeros(4, 1, c.width))
        self.norm = nn.Parameter(torch.ones(c.width))
        with torch.no_grad():
            self.bias[1].copy_(torch.linspace(3.0, 6.0, c.width))

    def initial_states(self) -> dict[str, Tensor]:
        """The first input gate wins, however small it is."""
        return {"m": torch.full((1, self.config.width), _EMPTY)}

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token ``(rows, width)``: output, next states, gate ``(rows, width)``."""
        c, n, h, m = states
        heads = (len(x), self.config.heads, 1, -1)
        both = torch.cat((x.reshape(heads), h.reshape(heads)), dim=-1)
        weights = torch.cat((self.inputs, self.recurrent), dim=-1)  # (4, heads, out, in)
        raw = torch.matmul(both.unsqueeze(0), weights.mT.unsqueeze(1)).reshape(4, len(x), -1)
        i, f, z, o = (raw + self.bias).unbind(0)
        forgets = log_sigmoid(f)
        faded = forgets + m
        gate, top = share(i - faded), torch.maximum(faded, i)
        is_open = opens(gate, threshold)
        decay, weight = _decay(forgets, m, top), torch.exp(i - top)
        c = torch.where(is_open, decay * c + weight * torch.tanh(z), c)
        n = torch.where(is_open, decay * n + weight, n)
        m = torch.where(is_open, top, faded)
        # n is at least 1 after the first write, and c is 0 before it.
        h = torch.sigmoid(o) * c / n.clamp(min=1e-30)
        normed = _normed(h.reshape(len(x), self.config.heads, -1), self.norm, self.config.norm_eps)
        return normed, (c, n, h, m), gate


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Layer norm of each head ``(rows, heads, channels)``, side by side ``(rows, width)``."""
    x = x - x.mean(-1, keepdim=True)
    return (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)).flatten(-2) * weight


PUBLISHED = {
    # arXiv:2503.13427: 32 blocks of 8 heads, keys of 256, values of 512.
    "xlstm-7b": StackConfig(4096, 4096, 32, 10944, MlstmConfig(4096, 8, 256, 512, 15.0, 1e-6)),
}
"""Published models by name, for the size of their memories."""
