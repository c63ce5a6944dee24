"""TRIM-KV as data: the sizes of the cache, which of its forms it has, and what that makes a write.

| form | slots | after each token | a write |
|---|---|---|---|
| ``admit`` | M | replaces the weakest, unless it is that itself | an opening |
| ``evict_one`` | M + 1 | is stored; the weakest is freed | every step |
| ``append_compact`` | M + B | is stored; of M + B, the B weakest are freed | every step |

``admit`` and ``evict_one`` give the same outputs. ``append_compact`` does not: scores fall at
different speeds, so evicting every B tokens keeps others than evicting each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule

Form = Literal["admit", "evict_one", "append_compact"]

_FLOAT_BYTES = 4
_STAMP_BYTES = 4


@dataclass(frozen=True, slots=True)
class TrimKvConfig(Configuration):
    """A stack of attention layers whose cache is bounded by learned retention.

    Attributes:
        features: Of one observation.
        out_features: Of one answer.
        layers: How many.
        width: Of the residual stream.
        heads: Query heads, a multiple of ``kv_heads``; group i of them reads key-value head i.
        kv_heads: Key-value heads; each keeps tokens of its own choice.
        head_dim: Width of a key and of a value, even.
        memory: Tokens that survive an eviction, M.
        buffer: Tokens between two evictions, B. Accuracy belongs to the B it was measured with.
        form: What happens after each token; see the module.
        gate_hidden: Hidden width of the retention gate; None for a single linear map, the energy
            of Energy-Gated Attention (arXiv:2605.21842), whose logarithm is then the retention.
        gate_bias: What the retention gate's bias starts at: 10 in the published code.
        rope_theta: Base of the rotary angles.
        qk_norm: Whether queries and keys are normalised (as in Qwen3, not in Llama).
        mlp: Hidden width of the SwiGLU block.
        norm_eps: Of every RMS norm.
        threshold: By how much a token must beat the weakest to be admitted, in units of
            log-retention; 0 is the published rule. Only ``admit`` has one.
    """

    features: int
    out_features: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    memory: int
    buffer: int
    form: Form
    gate_hidden: int | None
    gate_bias: float
    rope_theta: float
    qk_norm: bool
    mlp: int
    norm_eps: float
    threshold: float = 0.0

    def rules(self) -> Iterator[Rule]:
        """Heads pair up, and the buffer and the threshold belong to the form."""
        grouped = self.heads % self.kv_heads == 0
        yield Rule("heads", grouped, f"a multiple of kv_heads={self.kv_heads}")
        even = self.head_dim % 2 == 0
        yield Rule("head_dim", even, "an even number: rotary angles turn pairs of channels")
        turns = self.rope_theta > 1
        yield Rule("rope_theta", turns, "more than 1; published models have 1e4 to 5e6")
        yield Rule("norm_eps", self.norm_eps > 0, "more than 0")
        buffered = self.form == "append_compact"
        yield Rule(
            "buffer",
            buffered == (self.buffer > 1),
            f"{'2 or more' if buffered else '1'} for form={self.form!r}",
            "admit and evict_one decide after each token; append_compact after each buffer",
        )
        yield Rule(
            "threshold",
            self.form == "admit" or self.threshold == 0,
            f"0 for form={self.form!r}, which stores every token",
            "form='admit' has a threshold",
        )

    @property
    def slots(self) -> int:
        """Tokens that a head has room for."""
        return self.memory if self.form == "admit" else self.memory + self.buffer

    @property
    def kv_bytes_per_step(self) -> int:
        """What an unbounded float32 cache of this shape would grow by in each step."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _FLOAT_BYTES

    def step_spec(self) -> StepSpec:
        """Signature of one step, known without building any weights."""
        c = self
        gated = c.form == "admit"
        gate = "write" if gated else None
        # An opening is one head; without a gate every head of every layer stores its token.
        heads = 1 if gated else c.layers * c.kv_heads
        rule = f"{c.form}: {c.memory} kept, evicted every {c.buffer}"
        slots = (1, c.layers, c.kv_heads, c.slots)
        row = heads * c.head_dim * _FLOAT_BYTES
        # Where tokens are freed and not replaced, one stamp is cleared for each that is set.
        stamp = heads * _STAMP_BYTES * (1 if gated else 2)

        def of_token(name: str, what: str, *width: int, **sizes: Any) -> StateSpec:
            layout = f"layer, kv head, slot{what}; {rule}"
            return StateSpec(name, (*slots, *width), gate=gate, layout=layout, **sizes)

        return StepSpec(
            inputs=(TensorSpec("x", (1, c.features)),),
            outputs=(TensorSpec("y", (1, c.out_features)),),
            states=(
                of_token("k", ", channel after its rotation", c.head_dim, write_bytes=row),
                of_token("v", ", channel", c.head_dim, write_bytes=row),
                of_token("log_beta", "", write_bytes=heads * _FLOAT_BYTES),
                of_token(
                    "stamp", ": position of its token + 1, or 0 where empty",
                    dtype="int32", write_bytes=stamp,
                ),
                StateSpec(
                    "clock", (1, 1 + c.head_dim // 2), "int32",
                    layout="position of the next token, its rotary angles; modulo 2^30",
                ),
            ),
            gates=(
                GateSpec(
                    "write", "hard", (1, c.layers, c.kv_heads), c.threshold, "threshold",
                    granularity="head",
                ),
            )
            if gated
            else (),
        )  # fmt: skip


def _qwen3_4b(memory: int, buffer: int) -> TrimKvConfig:
    """Embeddings stand outside: features are those of the residual stream."""
    return TrimKvConfig(
        features=2560,
        out_features=2560,
        layers=36,
        width=2560,
        heads=32,
        kv_heads=8,
        head_dim=128,
        memory=memory,
        buffer=buffer,
        form="append_compact",
        gate_hidden=512,
        gate_bias=10.0,
        rope_theta=1e6,
        qk_norm=True,
        mlp=9728,
        norm_eps=1e-6,
    )


PUBLISHED: dict[str, TrimKvConfig] = {
    "qwen3-4b-256": _qwen3_4b(256, 32),
    "qwen3-4b-512": _qwen3_4b(512, 128),
    "qwen3-4b-1024": _qwen3_4b(1024, 128),
}
"""arXiv:2512.03324 on Qwen3-4B, by the memory's size, for the bytes of their memories."""
