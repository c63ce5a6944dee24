"""The other memories of the controlled benchmark, each behind the training loop's protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from lab.training.gates.retention import answers, beyond
from lab.training.step import DeltaLearner
from lab.training.stream import Recipe
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.models.memories.delta.config import DeltaConfig
from stategate.models.memories.recurrent.cell import MinGru, RecurrentStep
from stategate.models.memories.rwkv7 import Rwkv7, Rwkv7Config
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import TrimKvConfig
from stategate.models.memories.xlstm import MlstmConfig
from stategate.models.step import StepResult, Tensors, initial_states, threshold_inputs
from stategate.models.zoo.binding_stream import FEATURES, VALUES

_WIDTH, _KEY = 64, 32
Answers = Callable[[Tensor], Tensor]


def gated_delta() -> Stack:
    """One Gated DeltaNet layer with one 32 x 32 head: the delta rule with a learned decay."""
    layer = DeltaConfig(
        width=_WIDTH,
        heads=1,
        value_heads=1,
        key_dim=_KEY,
        value_dim=_KEY,
        decay_gate="head",
        write_gate="scalar",
        decay_lower_bound=None,
        negative_eigenvalues=False,
        output_gate="none",
        output_activation="silu",
        norm_eps=1e-5,
        conv_width=2,
        layout="key, value",
        skip_by="gate",
    )
    return Stack(StackConfig(FEATURES, VALUES, layers=1, mlp=_WIDTH, layer=layer))


def mlstm() -> Stack:
    """One mLSTM layer with one 32 x 32 head; its input gate starts open now and then."""
    layer = MlstmConfig(_WIDTH, 1, _KEY, _KEY, gate_cap=15.0, norm_eps=1e-6)
    model = Stack(StackConfig(FEATURES, VALUES, layers=1, mlp=_WIDTH, layer=layer))
    bias = model.get_parameter("blocks.0.memory.to_gates.bias")
    with torch.no_grad():  # -10 is published, for runs of a hundred thousand iterations
        bias[:1] = -2.0
    return model


def rwkv7() -> Rwkv7:
    """One RWKV-7 layer with four 16 x 16 heads, as many numbers as one of 32 x 32."""
    layer = Rwkv7Config(_WIDTH, 16, 16, 16, 8, 16, hidden=2 * _WIDTH, norm_eps=1e-5)
    return Rwkv7(StackConfig(FEATURES, VALUES, layers=1, mlp=None, layer=layer))


def trim_kv() -> TrimKv:
    """One layer that admits to sixteen slots of one head: the bytes of a 32 x 32 matrix."""
    config = TrimKvConfig(
        features=FEATURES,
        out_features=VALUES,
        layers=1,
        width=_WIDTH,
        heads=1,
        kv_heads=1,
        head_dim=_KEY,
        memory=16,
        buffer=1,
        form="admit",
        gate_hidden=_WIDTH,
        gate_bias=5.0,
        rope_theta=1e4,
        qk_norm=True,
        mlp=_WIDTH,
        norm_eps=1e-5,
    )
    return TrimKv(config)


def recurrent(kind: type[nn.GRU] | type[nn.LSTM], hidden: int) -> RecurrentStep:
    """A linear encoder, one recurrent layer, a linear head."""
    encoder = nn.Sequential(nn.Linear(FEATURES, _WIDTH), nn.SiLU())
    return RecurrentStep(kind(_WIDTH, hidden), nn.Linear(hidden, VALUES), encoder)


def mingru(hidden: int) -> MinGru:
    """One minGRU layer."""
    return MinGru(FEATURES, hidden, VALUES, layers=1)


class LinearAttention(nn.Module):
    """Linear attention with decay: a matrix that adds and fades, and never erases.

    With gates a (kept) and w (written), S <- a S + w k^T v and o = q S, normed
    (arXiv:2006.16236 with the scalar decay of arXiv:2312.06635).
    """

    family = "linear_attention"
    kv_bytes_per_step = 4 * 2 * _KEY

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(FEATURES, _WIDTH)
        self.to_qkv = nn.Linear(_WIDTH, 3 * _KEY)
        self.to_gates = nn.Linear(_WIDTH, 2)
        self.norm = nn.RMSNorm(_KEY, eps=1e-5)
        self.head = nn.Sequential(
            nn.Linear(_KEY + _WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, VALUES)
        )
        nn.init.constant_(self.to_gates.bias, 4.0)  # starts with a memory of some 50 steps

    def step_spec(self) -> StepSpec:
        """Signature of one step; every step writes."""
        return StepSpec(
            inputs=(TensorSpec("x", (1, FEATURES)),),
            outputs=(TensorSpec("y", (1, VALUES)),),
            states=(StateSpec("S", (1, _KEY, _KEY), layout="key, value"),),
            gates=(),
        )

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation ``(rows, 64)``."""
        x, q, k, v, fade = self._project(inputs["x"])
        S = torch.exp(fade).unsqueeze(-1) * states["S"] + k.unsqueeze(-1) * v.unsqueeze(-2)
        o = torch.matmul(q.unsqueeze(-2), S).squeeze(-2)
        return StepResult({"y": self._answer(o, x)}, {"S": S}, {})

    def through(self, z: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """Many steps by products: ``(time, rows, 64)`` to answers and the last matrix."""
        x, q, k, v, fade = (part.transpose(0, 1) for part in self._project(z))
        total = torch.cumsum(fade, dim=1)  # (rows, time, 1)
        # A matrix of differences, masked before the exponential: none of them is above zero.
        between = total - total.transpose(1, 2)
        past = torch.ones_like(between[0]).tril().bool()
        weights = torch.exp(between.masked_fill(~past, float("-inf")))
        o = torch.matmul(weights * torch.matmul(q, k.transpose(1, 2)), v)
        o = o + torch.exp(total) * torch.matmul(q, S)
        last = total[:, -1:]
        added = torch.matmul((torch.exp(last - total) * k).transpose(1, 2), v)
        return self._answer(o, x).transpose(0, 1), torch.exp(last) * S + added

    def _project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x = silu(self.encode(z))
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        keeps, writes = self.to_gates(x).chunk(2, dim=-1)
        return x, q, k, torch.sigmoid(writes) * v, logsigmoid(keeps)

    def _answer(self, o: Tensor, x: Tensor) -> Tensor:
        answer: Tensor = self.head(torch.cat((self.norm(o), x), dim=-1))
        return answer


class StackLearner(DeltaLearner):
    """A stack through its chunked form, or step by step where it has none; all is written.

    Args:
        recipe: Of the training.
        make: The stack.
    """

    def __init__(self, recipe: Recipe, make: Callable[[], Stack]) -> None:
        self.module = make()

    def run(self, iteration: int, z: Tensor, states: Tensors) -> tuple[Answers, Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        if self.module.chunk_steps:
            return super().run(iteration, z, states)
        limits, outputs = threshold_inputs(self.module.step_spec()), []
        for x in z:
            result = self.module.step({"x": x, **limits}, states)
            states = result.states
            outputs.append(result.outputs["y"])
        y = torch.stack(outputs)
        return lambda queries: y[queries], states, torch.zeros(())


class TrimKvLearner:
    """TRIM-KV over a chunk that begins empty; priced is what is retained beyond its slots.

    All of it learns, where the published method freezes a trained model and learns gates alone.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.module = trim_kv()

    def start(self, streams: int) -> Tensors:
        """Nothing is carried from one chunk to the next."""
        return {}

    def run(self, iteration: int, z: Tensor, states: Tensors) -> tuple[Answers, Tensors, Tensor]:
        """Go through a chunk, where what is forgotten fades and nothing leaves."""
        y, log_betas = answers(self.module, z.transpose(0, 1), retained=True)
        price = beyond(log_betas, self.module.config.memory)
        return lambda queries: y.transpose(0, 1)[queries], {}, price


class LinearAttentionLearner:
    """Linear attention by products over the chunk."""

    def __init__(self, recipe: Recipe) -> None:
        self.module = LinearAttention()

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        return initial_states(self.module, streams)

    def run(self, iteration: int, z: Tensor, states: Tensors) -> tuple[Answers, Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        y, S = self.module.through(z, states["S"])
        return lambda queries: y[queries], {"S": S}, torch.zeros(())


class RecurrentLearner:
    """GRU and LSTM through torch's own sequence form.

    Args:
        recipe: Of the training.
        kind: Of the layer.
        hidden: Its channels.
    """

    def __init__(self, recipe: Recipe, kind: type[nn.GRU] | type[nn.LSTM], hidden: int) -> None:
        self.module = recurrent(kind, hidden)

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        return initial_states(self.module, streams)

    def run(self, iteration: int, z: Tensor, states: Tensors) -> tuple[Answers, Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        model = self.module
        encoder, head = cast(nn.Module, model.encoder), cast(nn.Module, model.head)
        names = list(states)  # h, and c of an LSTM, as torch orders them
        before = tuple(states[name].transpose(0, 1).contiguous() for name in names)
        y, after = model.module(encoder(z), before if len(before) > 1 else before[0])
        after = after if len(before) > 1 else (after,)
        carried = {n: s.transpose(0, 1) for n, s in zip(names, after, strict=True)}
        return lambda queries: head(y[queries]), carried, torch.zeros(())


class MinGruLearner:
    """minGRU: gates and candidates of a chunk at once, then one elementwise recurrence.

    Args:
        recipe: Of the training.
        hidden: Channels.
    """

    def __init__(self, recipe: Recipe, hidden: int) -> None:
        self.module = mingru(hidden)

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        return initial_states(self.module, streams)

    def run(self, iteration: int, z: Tensor, states: Tensors) -> tuple[Answers, Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        model = self.module
        gates, candidates = torch.sigmoid(model.to_z[0](z)), model.to_h[0](z)
        h, all_h = states["h"][:, 0], []
        for gate, candidate in zip(gates.unbind(0), candidates.unbind(0), strict=True):
            h = torch.lerp(h, candidate, gate)
            all_h.append(h)
        y = torch.stack(all_h)
        return lambda queries: model.head(y[queries]), {"h": h.unsqueeze(1)}, torch.zeros(())
