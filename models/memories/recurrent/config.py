"""Sizes of LSTM, GRU and minGRU stacks, and what they remember, before any weight exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule


@dataclass(frozen=True, slots=True)
class RecurrentConfig(Configuration):
    """What a stack takes, gives and remembers.

    Attributes:
        family: Which cell.
        features: Width of the input.
        hidden: Channels of a layer.
        layers: How many.
        out_features: Width of the output.
        projection: Width to which an LSTM projects its h (``proj_size``); None where it does not.
    """

    family: Literal["lstm", "gru", "mingru"]
    features: int
    hidden: int
    layers: int
    out_features: int
    projection: int | None = None

    def rules(self) -> Iterator[Rule]:
        """A projection narrows the h of an LSTM."""
        yield Rule(
            "projection",
            self.projection is None or (self.family == "lstm" and self.projection < self.hidden),
            f"less than the {self.hidden} hidden channels, and only in an lstm",
            "None switches it off",
        )

    @property
    def kv_bytes_per_step(self) -> int:
        """Growth of the float32 key-value cache of attention layers of the same width."""
        return 4 * 2 * self.layers * self.hidden

    def step_spec(self, write_threshold: float | None = None) -> StepSpec:
        """Signature of one step.

        Args:
            write_threshold: Of the gate of each channel; None for a soft gate, which decides
                nothing.
        """
        channels = (1, self.layers, self.hidden)
        layout = "layer, channel"
        if self.family == "lstm":
            # h is made from c and the output gate of this step, so no gate guards it.
            h = StateSpec("h", (*channels[:2], self.projection or self.hidden), layout=layout)
            states: tuple[StateSpec, ...] = (
                h,
                StateSpec("c", channels, gate="write", layout=layout),
            )
        else:
            states = (StateSpec("h", channels, gate="write", layout=layout),)
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
