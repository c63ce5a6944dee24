"""Memories that keep rows: a window of attention with sinks, a ring of observations, tokens.

Attention over a window (arXiv:2309.17453) keeps the first tokens, the sinks, for ever, and of the
others the last ones. A token sees the sinks, the window and itself: ``window`` counts itself. Keys
are kept before their rotation and rotated when they are read, by their place in the cache and not
by their position in the stream, as published; places are small integers, so nothing drifts however
long the stream is, and the angles are constants.

What is kept is a ring: a token takes one slot, and no other moves. ``turn`` says which: it counts
up through the slots, and then goes round the window alone. A token is admitted by its energy, as
in Energy-Gated Attention (arXiv:2605.21842): one linear map of the token, and a logistic function,
whose value also scales what it adds to others. One that is refused is still seen by itself.

The ring of observations keeps the observations themselves; they are laid out in order, oldest
first, before the layer reads them. That is a stack of frames, in which no frame moves.

Memory tokens are rows that attend to an observation and to each other, and are blended with what
comes out (arXiv:2207.06881 without the gate).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule
from stategate.models.functions import share
from stategate.models.memories.stack import LayerConfig, StackConfig, States, Stepped
from stategate.models.memories.trim_kv.cell import rotated
from stategate.models.step import StepResult, Tensors, opens

_NEVER = -1e18


@dataclass(frozen=True, slots=True)
class WindowConfig(LayerConfig):
    """One layer of attention over a window.

    Attributes:
        width: Features of the layer's input and output.
        heads: Query heads, a multiple of ``kv_heads``; neighbours share a key-value head.
        kv_heads: Key-value heads.
        head_dim: Width of a key and of a value, even.
        sinks: First tokens, which stay; None for none.
        window: Tokens that a token sees beside the sinks, itself among them; 2 or more.
        rope_theta: Base of the rotary angles.
        norm_eps: Of the norm before the layer.
        energy: Whether values are scaled by their token's energy; if not, it only admits.
    """

    kind: ClassVar[str] = "window"
    granularity: ClassVar[Literal["head", "channel", "slot"]] = "slot"
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    sinks: int | None
    window: int
    rope_theta: float
    norm_eps: float
    energy: bool

    def rules(self) -> Iterator[Rule]:
        """Heads share evenly, and something is remembered."""
        yield Rule("heads", self.heads % self.kv_heads == 0, f"a multiple of {self.kv_heads}")
        yield Rule("head_dim", self.head_dim % 2 == 0, "an even number: angles turn pairs")
        yield Rule("window", self.window >= 2, "2 or more: a token beside the present one")
        yield Rule("rope_theta", self.rope_theta > 1, "more than 1; 1e4 in published models")
        yield from LayerConfig.rules(self)

    @property
    def gates(self) -> int:
        """One: a token is admitted by all heads or by none."""
        return 1

    @property
    def slots(self) -> int:
        """Tokens that are kept; the present one is not among them."""
        return (self.sinks or 0) + self.window - 1

    @property
    def kv_bytes_per_step(self) -> int:
        """Of a float32 cache that grows."""
        return 8 * self.kv_heads * self.head_dim

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """Keys before their rotation, values, and the turn of the ring."""
        shape = (1, self.kv_heads, self.slots, self.head_dim)
        row = 4 * self.kv_heads * self.head_dim
        rule = f"head, slot ({self.sinks or 0} sinks, then a ring), channel"
        tokens = partial(StateSpec, shape=shape, gate="write", write_bytes=row)
        return (
            tokens(f"{prefix}k", layout=f"{rule} before its rotation"),
            tokens(f"{prefix}v", layout=rule),
            StateSpec(f"{prefix}turn", (1, 1), "int32", gate="write", layout="see the cell"),
        )

    def build(self) -> nn.Module:
        """The layer."""
        return WindowLayer(self)


class WindowLayer(nn.Module):
    """See the module."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__()
        self.config = c = config
        self.to_q = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.to_kv = nn.Linear(c.width, 2 * c.kv_heads * c.head_dim, bias=False)
        self.to_energy = nn.Linear(c.width, 1)
        self.to_out = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        rates = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        angles = torch.arange(c.slots + 1, dtype=torch.float64).unsqueeze(-1) * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One token ``(rows, width)``: output, next states, gate ``(rows, 1)``."""
        c, (k, v, turn) = self.config, states
        gate = share(self.to_energy(x))
        q = self.to_q(x).reshape(len(x), c.heads, 1, -1)
        new_k, new_v = self.to_kv(x).reshape(len(x), 2, c.kv_heads, 1, -1).unbind(1)
        if c.energy:
            new_v = new_v * gate[..., None, None]
        place, count = _places(turn, c.sinks or 0, c.slots)
        keys = rotated(k, *self._angles(place.unsqueeze(1)))
        last = self._angles(count.unsqueeze(1))  # behind all that is kept
        q = rotated(q, *last).reshape(len(x), c.kv_heads, -1, c.head_dim) * c.head_dim**-0.5
        scores = torch.matmul(q, keys.mT)
        scores = torch.where((place < count)[:, None, None], scores, _NEVER)
        own = torch.matmul(q, rotated(new_k, *last).mT)
        weights = torch.softmax(torch.cat((scores, own), dim=-1), dim=-1)
        o = torch.matmul(weights[..., :-1], v) + weights[..., -1:] * new_v
        is_open = opens(gate, threshold)
        slot, following = _turned(turn, c.sinks or 0, c.slots)
        put = (slot & is_open)[:, None, :, None]
        after = (
            torch.where(put, new_k, k),
            torch.where(put, new_v, v),
            torch.where(is_open, following, turn),
        )
        return self.to_out(o.reshape(len(x), -1)), after, gate

    def _angles(self, place: Tensor) -> tuple[Tensor, Tensor]:
        return embedding(place, self.cos), embedding(place, self.sin)


def _places(turn: Tensor, sinks: int, slots: int) -> tuple[Tensor, Tensor]:
    """The place of each slot, oldest first, ``(rows, slots)``, and how many are taken.

    Slots that are not taken have places behind those that are.
    """
    slot = torch.arange(slots, dtype=turn.dtype, device=turn.device)
    place = slot - (turn - slots).clamp(min=0)  # the ring begins where it is written next
    place = torch.where(place < sinks, place + (slots - sinks), place)
    return torch.where(slot < sinks, slot, place), turn.clamp(max=slots)


def _turned(turn: Tensor, sinks: int, slots: int) -> tuple[Tensor, Tensor]:
    """Which slot a token takes, ``(rows, slots)`` bool, and the turn after that."""
    at = torch.where(turn < slots, turn, turn - (slots - sinks))
    following = torch.where(turn + 1 == 2 * slots - sinks, slots, turn + 1).to(turn.dtype)
    return at == torch.arange(slots, dtype=turn.dtype, device=turn.device), following


@dataclass(frozen=True, slots=True)
class RingConfig(Configuration):
    """A ring of observations before two linear maps.

    Attributes:
        features: Of one observation.
        out_features: Of one answer.
        frames: Observations that an answer depends on, the present one among them; 2 or more.
        hidden: Width between the maps.
        threshold: Of the energy, above which an observation is kept; 0 keeps them all.
    """

    features: int
    out_features: int
    frames: int
    hidden: int
    threshold: float = 0.0

    def rules(self) -> Iterator[Rule]:
        """Something is remembered."""
        yield Rule("frames", self.frames >= 2, "2 or more: one beside the present one")

    def step_spec(self) -> StepSpec:
        """Signature of one step, known without building any weights."""
        rows = (1, self.frames - 1, self.features)
        row = 4 * self.features
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.features)),),
            outputs=(TensorSpec("y", (1, self.out_features)),),
            states=(
                StateSpec("frames", rows, gate="write", layout="slot, feature", write_bytes=row),
                StateSpec("turn", (1, 1), "int32", gate="write", layout="see the cell"),
            ),
            gates=(GateSpec("write", "hard", (1, 1), self.threshold, "threshold"),),
        )


class ObservationRing(nn.Module):
    """The last observations that were kept, and the present one, before two linear maps.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: What a history of observations would grow by in each step.
    """

    family = "ring"

    def __init__(self, config: RingConfig) -> None:
        super().__init__()
        self.config = c = config
        self.kv_bytes_per_step = 4 * c.features
        self.to_energy = nn.Linear(c.features, 1)
        self.hidden = nn.Linear(c.frames * c.features, c.hidden)
        self.head = nn.Linear(c.hidden, c.out_features)

    def step_spec(self) -> StepSpec:
        """See `RingConfig.step_spec`."""
        return self.config.step_spec()

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation; where it is not kept, ring and turn stay bit for bit."""
        x, frames, turn = inputs["x"], states["frames"], states["turn"]
        slots = self.config.frames - 1
        place, _ = _places(turn, 0, slots)
        # Slots in order of their places: where slot i has place p, row p of the order is i.
        order = torch.arange(slots, dtype=place.dtype, device=place.device)
        order = (order.unsqueeze(-1) == place.unsqueeze(-2)).to(frames.dtype)
        history = torch.matmul(order, frames)
        gate = share(self.to_energy(x))
        is_open = opens(gate, inputs["threshold"])
        slot, following = _turned(turn, 0, slots)
        after = {
            "frames": torch.where((slot & is_open).unsqueeze(-1), x.unsqueeze(1), frames),
            "turn": torch.where(is_open, following, turn),
        }
        hidden = silu(self.hidden(torch.cat((history.flatten(1), x), dim=-1)))
        return StepResult({"y": self.head(hidden)}, after, {"write": gate})


@dataclass(frozen=True, slots=True)
class TokensConfig(LayerConfig):
    """Memory tokens, which attend to an observation and to each other.

    Attributes:
        width: Features of the layer's input and output, and of a memory token.
        tokens: How many.
        heads: Of the attention; divides ``width``.
        norm_eps: Of the norm before the layer.
    """

    kind: ClassVar[str] = "memory_tokens"
    granularity: ClassVar[Literal["head", "channel", "slot"]] = "slot"
    divided: ClassVar[bool] = True
    width: int
    tokens: int
    heads: int
    norm_eps: float

    @property
    def gates(self) -> int:
        """One a token."""
        return self.tokens

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """The tokens."""
        shape = (1, self.tokens, self.width)
        return (StateSpec(f"{prefix}tokens", shape, gate="write", layout="token, channel"),)

    def build(self) -> nn.Module:
        """The layer."""
        return TokensLayer(self)


class TokensLayer(nn.Module):
    """Attention over [memory tokens, observation]; rows of tokens are blended into the memory."""

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self.config = c = config
        self.start = nn.Parameter(torch.randn(c.tokens, c.width) * 0.5)
        self.to_qkv = nn.Linear(c.width, 3 * c.width)
        self.to_out = nn.Linear(c.width, c.width)
        self.to_gate = nn.Linear(c.width, 1)

    def initial_states(self) -> dict[str, Tensor]:
        """Tokens as they were learned."""
        return {"tokens": self.start.unsqueeze(0)}

    def step(self, x: Tensor, states: States, threshold: Tensor) -> Stepped:
        """One observation ``(rows, width)``: output, next states, gate ``(rows, tokens)``."""
        (tokens,), c = states, self.config
        both = torch.cat((tokens, x.unsqueeze(1)), dim=1)
        parts = self.to_qkv(both).reshape(*both.shape[:2], 3, c.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(torch.matmul(q, k.mT) * q.shape[-1] ** -0.5, dim=-1)
        mixed = self.to_out(torch.matmul(weights, v).transpose(1, 2).flatten(2))
        update, out = mixed[:, :-1], mixed[:, -1]
        gate = share(self.to_gate(update))
        is_open = opens(gate, threshold)
        after = torch.where(is_open, tokens + gate * (update - tokens), tokens)
        return out, (after,), gate.squeeze(-1)


PUBLISHED = {
    # arXiv:2309.17453: Llama-2-7B with 4 sinks and a cache of 1,024 tokens in all.
    "streaming-llama-2-7b": StackConfig(
        4096, 4096, 32, 11008, WindowConfig(4096, 32, 32, 128, 4, 1020, 1e4, 1e-5, False)
    ),
}
"""Published models by name, for the size of their memories."""
