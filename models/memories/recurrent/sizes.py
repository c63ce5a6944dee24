"""Sizes of LSTM, GRU and minGRU stacks, and what they remember, before any weight exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import ModelConfigError
from stategate.models.fields import check_fields

Family = Literal["lstm", "gru", "mingru"]


@dataclass(frozen=True, slots=True)
class RecurrentSizes:
    """What a stack takes, gives and remembers.

    Attributes:
        family: Which cell.
        features: Width of the input.
        hidden: Channels of a layer.
        layers: How many.
        out_features: Width of the output.
        projection: Width to which an LSTM projects its h (``proj_size``); None where it does not.
    """

    family: Family
    features: int
    hidden: int
    layers: int
    out_features: int
    projection: int | None = None

    def __post_init__(self) -> None:
        """Check that a step can be built.

        Raises:
            ModelConfigError: Naming the field and what to do.
        """
        check_fields(self)
        if self.projection is not None and (
            self.family != "lstm" or not 0 < self.projection < self.hidden
        ):
            raise ModelConfigError(
                "RecurrentSizes.projection is no projection",
                found=f"{self.projection} in a {self.family} of {self.hidden} channels",
                expected="less than the hidden channels, in an lstm only",
                remedy="None switches it off",
            )

    @property
    def kv_bytes_per_step(self) -> int:
        """Growth of the float32 key-value cache of attention layers of the same width."""
        return 4 * 2 * self.layers * self.hidden

    def step_spec(self, write_threshold: float | None = None) -> StepSpec:
        """Signature of one step, from the sizes alone: no weight is made.

        Args:
            write_threshold: Of the gate of each channel; None for a soft gate, which only tells.
        """
        channels = (1, self.layers, self.hidden)
        if self.family == "lstm":
            seen = (1, self.layers, self.projection or self.hidden)
            states: tuple[StateSpec, ...] = (
                StateSpec("h", seen, layout="layer, channel"),
                StateSpec("c", channels, gate="write", layout="layer, channel"),
            )
        else:
            states = (StateSpec("h", channels, gate="write", layout="layer, channel"),)
        if write_threshold is None:
            gate = GateSpec("write", "soft", channels, granularity="channel")
        else:
            gate = GateSpec(
                "write", "hard", channels, write_threshold, "threshold", granularity="channel"
            )
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.features)),),
            outputs=(TensorSpec("y", (1, self.out_features)),),
            states=states,
            gates=(gate,),
        )
