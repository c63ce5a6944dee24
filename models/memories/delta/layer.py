"""A full layer of the delta family: projections, short convolution, recurrence, gated norm.

As published (arXiv:2412.06464, arXiv:2510.26692, arXiv:2605.22791): queries, keys and values pass a
causal depthwise convolution with SiLU; queries and keys are then scaled to unit length, with 1e-6
added under the root; the read is RMS-normed, gated and projected back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from stategate.models.functions import share, unit
from stategate.models.memories.delta.cell import Carried, Tokens, Written, chunk, largest_gate, step
from stategate.models.memories.delta.config import DeltaConfig
from stategate.models.memories.stack import States, Stepped
from stategate.models.operators import (
    Operators,
    causal_conv,
    linear_attention,
    traced_natively,
)
from stategate.models.step import opens


class DeltaLayer(nn.Module):
    """One layer with its memory in its arguments.

    States are those of `DeltaConfig.states`: matrix, log-decay, convolution columns.
    """

    def __init__(self, config: DeltaConfig) -> None:
        super().__init__()
        self.config = c = config
        self.operators = Operators.PORTABLE
        values = c.value_heads * c.value_dim
        decays = c.gate_heads * c.decay_dim
        self.to_qkv = nn.Linear(c.width, c.conv_channels, bias=False)
        self.conv = nn.Parameter(torch.empty(c.conv_channels, c.conv_width))
        self.to_decay: nn.Module = nn.Linear(c.width, decays, bias=False)
        if c.decay_gate == "channel":  # published with a bottleneck of a value's width
            self.to_decay = _bottleneck(c.width, c.value_dim, decays, bias=False)
        self.A_log = nn.Parameter(torch.empty(c.gate_heads))
        self.dt_bias = nn.Parameter(torch.empty(decays))
        vector = c.write_gate == "vector"
        erases = c.heads * c.key_dim if vector else c.updates * c.value_heads
        self.to_erase = nn.Linear(c.width, erases, bias=False)
        self.to_write = nn.Linear(c.width, values, bias=False) if vector else None
        self.to_gate: nn.Module | None = None
        if c.output_gate == "full":
            self.to_gate = nn.Linear(c.width, values, bias=False)
        elif c.output_gate != "none":
            bias = c.output_gate == "low_rank_bias"
            self.to_gate = _bottleneck(c.width, c.value_dim, values, bias)
        self.norm = nn.Parameter(torch.ones(c.value_dim))
        self.to_out = nn.Linear(values, c.width, bias=False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Published starting points: A in (1, 16), time steps in (1e-3, 0.1), both log-uniform."""
        nn.init.uniform_(self.conv, -(self.config.conv_width**-0.5), self.config.conv_width**-0.5)
        nn.init.uniform_(self.A_log, 0.0, math.log(16.0))
        if self.config.decay_lower_bound is not None:
            nn.init.zeros_(self.A_log)
        dt = torch.exp(torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token for every row.

        Args:
            x: ``(rows, width)``.
            states: Matrix, log-decay and convolution columns.
            threshold: ``(1,)``.

        Returns:
            ``(rows, width)``, the next states, and the gate ``(rows, value_heads)``.
        """
        S, log_decay, columns = states
        qkv = self.to_qkv(x)
        if traced_natively(self.operators):
            mixed, columns = causal_conv(self.operators, qkv[..., None], self.conv, columns, None)
            mixed = mixed.squeeze(-1)
        else:
            window = torch.cat((columns, qkv.unsqueeze(-1)), dim=-1)
            mixed, columns = silu((window * self.conv).sum(-1)), window[..., 1:]
        tokens = self._tokens(x, mixed)
        carried = Carried(self._key_first(S), log_decay)
        if traced_natively(self.operators):
            written = self._native_step(tokens, carried, threshold)
        else:
            written = step(tokens, carried, threshold, self.config.skip_by)
        return self._stepped(x, written, columns)

    def chunk(self, x: Tensor, states: States, threshold: Tensor, valid: Tensor) -> Stepped:
        """Several tokens for every row; see `stategate.models.memories.delta.cell.chunk`.

        Args:
            x: ``(rows, time, width)``.
            states: As in `step`.
            threshold: ``(1,)``.
            valid: ``(rows, time)`` bool, true up to the last token that is meant.

        Returns:
            ``(rows, time, width)``, the next states, and the gate ``(rows, time, value_heads)``.
        """
        S, log_decay, columns = states
        history = torch.cat((columns, self.to_qkv(x).transpose(1, 2)), dim=-1)
        taps = self.config.conv_width
        windows = [history[..., i : i + x.shape[1]] * self.conv[:, i, None] for i in range(taps)]
        mixed = silu(torch.stack(windows).sum(0)).transpose(1, 2)
        # The columns before the first token that is padding, wherever that is.
        first = valid.sum(dim=1, keepdim=True)
        at = (first + torch.arange(taps - 1, device=x.device)).unsqueeze(1)
        columns = torch.gather(history, 2, at.expand(-1, history.shape[1], -1))
        carried = Carried(self._key_first(S), log_decay)
        written = chunk(self._tokens(x, mixed), carried, threshold, valid)
        return self._stepped(x, written, columns)

    def _stepped(self, x: Tensor, written: Written, columns: Tensor) -> Stepped:
        S, log_decay = written.carried
        return self._out(x, written.o), (self._key_first(S), log_decay, columns), written.gate

    def _tokens(self, x: Tensor, mixed: Tensor) -> Tokens:
        """Gates from the observation, queries, keys and values from the convolution."""
        c = self.config
        keys = c.heads * c.key_dim
        q, k, v = torch.tensor_split(mixed, (keys, (1 + c.updates) * keys), dim=-1)
        q, k, v = _heads(q, c.heads), self._updates(k, c.heads), self._updates(v, c.value_heads)
        q, k = self._shared(unit(q)), self._shared(unit(k), -2 if c.updates == 1 else -3)
        f = _heads(self.to_decay(x) + self.dt_bias, c.gate_heads)
        rate = torch.exp(self.A_log).unsqueeze(-1)
        if c.decay_lower_bound is None:
            g = -rate * softplus(f)
        else:
            g = c.decay_lower_bound * share(rate * f)
        b = share(self.to_erase(x))
        if c.negative_eigenvalues:
            b = 2.0 * b
        if self.to_write is None:  # one gate erases and writes
            w = b = self._updates(b, c.value_heads)
        else:
            g, b = self._shared(g), self._shared(_heads(b, c.heads))
            w = _heads(share(self.to_write(x)), c.value_heads)
        return Tokens(q, k, v, g, b, w)

    def _updates(self, x: Tensor, heads: int) -> Tensor:
        """By heads, and by updates behind them; weights have updates before heads."""
        n = self.config.updates
        if n == 1:
            return _heads(x, heads)
        return x.reshape(*x.shape[:-1], n, heads, -1).transpose(-2, -3)

    def _shared(self, x: Tensor, axis: int = -2) -> Tensor:
        """From key heads to value heads: neighbours share, as in the published layers."""
        times = self.config.value_heads // self.config.heads
        return x if times == 1 else x.repeat_interleave(times, dim=axis)

    def _key_first(self, S: Tensor) -> Tensor:
        """Between the state's layout and the cell's; its own inverse. What waits has the cell's."""
        if self.config.layout == "key, value" or not isinstance(S, Tensor):
            return S
        return S.transpose(-1, -2)

    def _out(self, x: Tensor, o: Tensor) -> Tensor:
        c = self.config
        normed = o * torch.rsqrt((o * o).mean(-1, keepdim=True) + c.norm_eps) * self.norm
        if self.to_gate is not None:
            act = silu if c.output_activation == "silu" else torch.sigmoid
            normed = normed * _heads(act(self.to_gate(x)), c.value_heads)
        out: Tensor = self.to_out(normed.flatten(-2))
        return out

    def _native_step(self, tokens: Tokens, carried: Carried, threshold: Tensor) -> Written:
        """As `stategate.models.memories.delta.cell.step`, with the recurrence as one operator.

        The operator always decays and writes; what a closed head gets of it is thrown away. Where
        it cannot erase as the cell does (vector gates), or the update decides, the erase-read is a
        product of its own and the operator only adds what is given.
        """
        q, k, v, g, b, w = tokens
        decay = carried.log_decay + g
        if self.config.skip_by == "gate":
            gate = largest_gate(tokens)
        if self.config.skip_by == "update" or self.to_write is not None:
            erase = (b * k * torch.exp(decay)).unsqueeze(-2)
            u = w * v - torch.matmul(erase, carried.S).squeeze(-2)
            if self.config.skip_by == "update":
                gate = torch.sqrt((u * u).sum(-1))
            is_open = opens(gate, threshold).unsqueeze(-1)
            v, beta = torch.where(is_open, u, 0.0), None
        else:
            is_open = opens(gate, threshold).unsqueeze(-1)
            beta = torch.where(is_open, b, 0.0)
        o, written = linear_attention(
            self.operators,
            q.unsqueeze(1),
            k.unsqueeze(1),
            v.unsqueeze(1),
            carried.S,
            decay.unsqueeze(1),
            None if beta is None else beta.unsqueeze(1),
            self.config.key_dim**-0.5,
        )
        # A closed head keeps S bit for bit; its decay is carried on and folded into later reads.
        after = Carried(
            torch.where(is_open.unsqueeze(-1), written, carried.S),
            torch.where(is_open, torch.zeros_like(decay), decay),
        )
        return Written(o.squeeze(1), after, gate)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1)


def _bottleneck(width: int, inner: int, out: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner, bias=False), nn.Linear(inner, out, bias=bias))
