"""The delta family as data: its members differ in their gates' shapes and updates a step.

| family | log-decay | erase and write gate | published |
|---|---|---|---|
| Gated DeltaNet | one a head | one scalar for both, a head | arXiv:2412.06464 |
| KDA | one a key channel | one scalar for both, a head | arXiv:2510.26692 |
| Gated DeltaNet-2 | one a key channel | a vector each: over keys, over values | arXiv:2605.22791 |
| Gated DeltaProduct | one a head | as Gated DeltaNet, for each of its updates | arXiv:2502.10297 |

Nothing that changes the numbers has a default: a checkpoint run with the wrong output activation
differs by 0.8 and says nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from stategate.contract import StateSpec
from stategate.models.configuration import Rule
from stategate.models.memories.delta.cell import CHUNK
from stategate.models.memories.matrix import Ring
from stategate.models.memories.stack import LayerConfig, StackConfig

Family = Literal["gated_deltanet", "kda", "gated_deltanet2", "gated_deltaproduct"]

_FAMILIES: dict[tuple[str, str], Family] = {
    ("head", "scalar"): "gated_deltanet",
    ("channel", "scalar"): "kda",
    ("channel", "vector"): "gated_deltanet2",
}


@dataclass(frozen=True, slots=True)
class DeltaConfig(LayerConfig):
    """One layer of the delta family.

    Attributes:
        width: Features of the layer's input and output.
        heads: Query and key heads.
        value_heads: Value heads, a multiple of ``heads``; group i of them shares key head i.
        key_dim: Width of a key.
        value_dim: Width of a value.
        decay_gate: One log-decay a ``head``, or one a key ``channel``.
        write_gate: One ``scalar`` a head for erasing and writing, or a ``vector`` for each.
        decay_lower_bound: None for ``-exp(A) softplus(f + dt)``; a negative number L for
            ``L sigmoid(exp(A) (f + dt))``, which cannot decay faster than exp(L).
        negative_eigenvalues: Doubles the erase gate (and the write gate where they are one), which
            lets a write flip the sign of what it replaces.
        output_gate: Form of the gate on the output: ``full`` rank, ``low_rank``, ``low_rank_bias``
            or ``none``.
        output_activation: Of that gate: silu (Gated DeltaNet, Gated DeltaNet-2 of its authors) or
            sigmoid (KDA, Gated DeltaNet-2 as flash-linear-attention ports it).
        norm_eps: Of the output's RMS norm.
        conv_width: Taps of the short convolution over queries, keys and values.
        layout: Order of the state's last two axes.
        skip_by: What the write gate's output is: ``gate``, the largest erase or write gate of a
            head; or ``update``, the norm of the update, which is the error that skipping it makes.
        updates: Householder updates of a step, one after the other, each with a key, a value and
            a gate of its own; more than 1 is Gated DeltaProduct.
    """

    part: ClassVar[str] = "delta"

    width: int
    heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    decay_gate: Literal["head", "channel"]
    write_gate: Literal["scalar", "vector"]
    decay_lower_bound: float | None
    negative_eigenvalues: bool
    output_gate: Literal["full", "low_rank", "low_rank_bias", "none"]
    output_activation: Literal["silu", "sigmoid"]
    norm_eps: float
    conv_width: int
    layout: Literal["key, value", "value, key"]
    skip_by: Literal["gate", "update"]
    updates: int = 1

    def rules(self) -> Iterator[Rule]:
        """Heads share evenly, gates belong to a member of the family, decay only decays."""
        yield Rule("norm_eps", self.norm_eps > 0, "more than 0")
        shared = self.value_heads % self.heads == 0
        yield Rule("value_heads", shared, f"a multiple of heads={self.heads}")
        yield Rule(
            "decay_gate",
            (self.decay_gate, self.write_gate) in _FAMILIES,
            f"a decay_gate that goes with write_gate={self.write_gate!r}: "
            + "; ".join(f"{d} and {w}: {f}" for (d, w), f in _FAMILIES.items()),
            "a decay for each head with vector gates is a decay for each channel, all channels of "
            "a head alike",
        )
        yield Rule(
            "decay_lower_bound",
            self.decay_lower_bound is None or self.decay_lower_bound < 0,
            "a log-decay, below 0",
            "-5.0 is what published configurations have; None is the softplus form",
        )
        yield Rule("conv_width", self.conv_width >= 2, "2 or more; published layers have 4")
        yield Rule(
            "updates",
            self.updates == 1 or (self.decay_gate, self.write_gate) == ("head", "scalar"),
            "1 for a decay of each channel or vector gates",
            'decay_gate="head" and write_gate="scalar" for Gated DeltaProduct',
        )

    @property
    def family(self) -> Family:
        """Which member of the family it is."""
        if self.updates > 1:
            return "gated_deltaproduct"
        return _FAMILIES[self.decay_gate, self.write_gate]

    @property
    def gates(self) -> int:
        """One a value head."""
        return self.value_heads

    @property
    def native(self) -> bool:
        """Native operators update once a step."""
        return self.updates == 1

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk; none where the gate looks at the update, which is not known before."""
        return CHUNK // self.updates if self.skip_by == "gate" else 0

    @property
    def kv_bytes_per_step(self) -> int:
        """Of a float32 cache of one key and one value of each head."""
        return 4 * (self.heads * self.key_dim + self.value_heads * self.value_dim)

    @property
    def gate_heads(self) -> int:
        """Heads that have a decay (and an erase gate) of their own: vector gates go with keys."""
        return self.heads if self.write_gate == "vector" else self.value_heads

    @property
    def decay_dim(self) -> int:
        """Log-decays of one head."""
        return self.key_dim if self.decay_gate == "channel" else 1

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: queries, then keys and values of each update."""
        keys, values = self.heads * self.key_dim, self.value_heads * self.value_dim
        return keys + self.updates * (keys + values)

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """The layer's states: matrix, log-decay since its last write, convolution columns."""
        n, k, v = self.value_heads, self.key_dim, self.value_dim
        matrix = (k, v) if self.layout == "key, value" else (v, k)
        return (
            StateSpec(f"{prefix}S", (1, n, *matrix), gate="write", layout=f"head, {self.layout}"),
            StateSpec(f"{prefix}log_decay", (1, n, self.decay_dim), layout="head, key"),
            StateSpec(
                f"{prefix}conv",
                (1, self.conv_channels, self.conv_width - 1),
                layout="query key value channels, column",
            ),
        )

    def ring(self, prefix: str = "") -> Ring:
        """What waits for the matrix where its writes are deferred."""
        return Ring(
            f"{prefix}ring",
            self.value_heads,
            self.decay_dim,
            self.value_dim,
            {f"{prefix}S": self.key_dim},
            value_first=self.layout == "value, key",
            updates=self.updates,
        )

    def build(self) -> nn.Module:
        """The layer."""
        from stategate.models.memories.delta.layer import DeltaLayer

        return DeltaLayer(self)


_GDN2 = DeltaConfig(
    width=2304, heads=16, value_heads=16, key_dim=128, value_dim=128, decay_gate="channel",
    write_gate="vector", decay_lower_bound=None, negative_eigenvalues=False,
    output_gate="low_rank_bias", output_activation="silu", norm_eps=1e-5, conv_width=4,
    layout="key, value", skip_by="gate",
)  # fmt: skip
_GDN = replace(
    _GDN2, width=2048, heads=6, value_heads=6, key_dim=256, value_dim=512,
    decay_gate="head", write_gate="scalar", output_gate="full",
)  # fmt: skip
_QWEN3 = replace(_GDN, heads=16, value_heads=32, key_dim=128, value_dim=128)
_GDP = replace(_GDN, negative_eigenvalues=True, updates=2)
_KDA = replace(_GDN2, width=2048, write_gate="scalar", output_activation="sigmoid")
_KIMI = replace(_KDA, width=2304, heads=32, value_heads=32)


def _published(layers: int, layer: DeltaConfig) -> StackConfig:
    """The memory of a published model; features stand for its vocabulary, which is no memory."""
    return StackConfig(layer.width, layer.width, layers, None, layer)


PUBLISHED: dict[str, StackConfig] = {
    "gdn2-1.3b": _published(18, _GDN2),
    "gdn-fla-default": _published(21, _GDN),
    "qwen3-next-80b-a3b": _published(36, _QWEN3),
    "gdp-fla-default": _published(21, _GDP),
    "kda-fla-default": _published(24, _KDA),
    "kimi-linear-48b-a3b": _published(20, _KIMI),
}
"""Published models by name, for the size of their memories."""


def __getattr__(name: str) -> type[StackConfig]:
    # One version long: the example of a stack had this name.
    if name != "DeltaStackConfig":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "DeltaStackConfig is stategate.models.memories.stack.StackConfig",
        DeprecationWarning,
        stacklevel=2,
    )
    return StackConfig
