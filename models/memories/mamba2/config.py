"""Sizes of Mamba-2 stacks, and what they remember, before any weight exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule


@dataclass(frozen=True, slots=True)
class Mamba2Config(Configuration):
    """Everything that changes the numbers of a stack; nothing has a default.

    Attributes:
        features: Width of the input. A language model's is its vocabulary: the projection of a
            one-hot row is the embedding of that token.
        out_features: Width of the output.
        d_model: Width between the layers.
        layers: How many.
        heads: In each layer; ``heads * head_dim`` is the inner width, twice ``d_model`` in the
            published models.
        head_dim: Values of a head, P.
        state_dim: Columns of a head's matrix, N.
        groups: Groups of neighbouring heads that share B and C, and one norm.
        conv_width: Steps that the convolution sees, this one included.
        dt_min: Lower limit of dt, 0 where there is none.
        dt_max: Upper limit of dt, None where there is none.
        norm_eps: Added to the mean square in every norm.
    """

    features: int
    out_features: int
    d_model: int
    layers: int
    heads: int
    head_dim: int
    state_dim: int
    groups: int
    conv_width: int
    dt_min: float
    dt_max: float | None
    norm_eps: float

    def rules(self) -> Iterator[Rule]:
        """Groups share evenly, the convolution looks back, dt has a range."""
        yield Rule(
            "groups",
            self.heads % self.groups == 0,
            f"a divisor of heads={self.heads}",
            "1 group lets all heads share B and C",
        )
        yield Rule(
            "conv_width",
            self.conv_width >= 2,
            "2 or more: one column beside the present one",
            "4 in the published models; zero weights on the past switch it off",
        )
        no_limits = "0.0 and None for no limits"
        yield Rule("dt_min", self.dt_min >= 0, "0 or more", no_limits)
        above = self.dt_max is None or self.dt_max > self.dt_min
        yield Rule("dt_max", above, f"more than dt_min={self.dt_min}", no_limits)
        small = 0 < self.norm_eps < 1
        yield Rule("norm_eps", small, "between 0 and 1", "1e-5 in the published models")

    @property
    def inner(self) -> int:
        """Width of x, y and z: ``heads * head_dim``."""
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state_dim

    @property
    def kv_bytes_per_step(self) -> int:
        """Growth of the float32 key-value cache of attention layers of the same width."""
        return 4 * 2 * self.layers * self.d_model

    def step_spec(self, threshold: float = 0.0) -> StepSpec:
        """Signature of one step, from the sizes alone: no weight is made.

        Args:
            threshold: Of dt, at which a head is written.
        """
        h = (1, self.heads, self.head_dim, self.state_dim)
        conv = (1, self.conv_channels, self.conv_width - 1)
        states = []
        for layer in range(self.layers):
            name = f"layers.{layer}"
            states.append(StateSpec(f"{name}.h", h, gate="write", layout="head, value, state"))
            states.append(StateSpec(f"{name}.conv", conv, layout="channel, step"))
        shape = (1, self.layers, self.heads)
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.features)),),
            outputs=(TensorSpec("y", (1, self.out_features)),),
            states=tuple(states),
            gates=(GateSpec("write", "hard", shape, threshold, "threshold", granularity="head"),),
        )


def _language_model(
    d_model: int, layers: int, vocabulary: int, groups: int = 1, state_dim: int = 128
) -> Mamba2Config:
    """What the published models have in common: heads of 64 over twice the width, 4 steps."""
    heads = 2 * d_model // 64
    sizes = (vocabulary, vocabulary, d_model, layers, heads, 64, state_dim, groups, 4)
    return Mamba2Config(*sizes, dt_min=0.0, dt_max=None, norm_eps=1e-5)


PUBLISHED: dict[str, Mamba2Config] = {
    # The checkpoints of the paper's authors; vocabulary of 50,277 padded to a multiple of 16.
    "mamba2-130m": _language_model(768, 24, 50_288),
    "mamba2-1.3b": _language_model(2048, 48, 50_288),
    "mamba2-2.7b": _language_model(2560, 64, 50_288),
    # The 7B code model: the configuration that transformers has as its default.
    "codestral-mamba-7b": _language_model(4096, 64, 32_768, groups=8),
    # One layer of the baseline in arXiv:2605.22791, which has 1 MiB of state in each.
    "gdn2-paper-layer": _language_model(2048, 1, 32_000, state_dim=64),
}
