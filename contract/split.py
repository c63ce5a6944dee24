"""How a step is run: in one graph, or in one for every step and another for those that write."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StepSpec, TensorSpec

Tensors = dict[str, TensorSpec]


class Way(Record, frozen=True):
    """How a bundle's step is run, and why so."""

    # ``fused``: one graph computes everything in every step. ``read-write``: ``read`` in every
    # step, ``write`` after it where a gate is open and may write. ``quiet``: ``read`` is the step
    # with every gate closed, and an open one takes the whole step after it
    way: Literal["fused", "read-write", "quiet"]
    why: str  # what that was chosen by
    # what ``read`` hands to ``write`` beside what every step gives
    payload: tuple[TensorSpec, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is a reason, and a payload only where something takes it."""
        if not self.why:
            raise SpecError("a way of running a step has no reason")
        if self.payload and self.way != "read-write":
            raise SpecError("only a write takes a payload", found=f"one in the way {self.way!r}")

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the graphs that are run."""
        ways = {"fused": ("step",), "read-write": ("read", "write"), "quiet": ("read", "step")}
        return ways[self.way]

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload."""
        return sum(tensor.nbytes for tensor in self.payload)


def given_by_read(spec: StepSpec) -> Tensors:
    """What every step gives, quiet or not: outputs, gates, states that no hard gate guards."""
    guarded = {s.next_name for s in spec.states if s.gate in spec.thresholds}
    return {name: t for name, t in spec.graph_outputs().items() if name not in guarded}


def read_signature(spec: StepSpec, way: Way) -> tuple[Tensors, Tensors]:
    """What a read may take, and what it gives."""
    payload = {tensor.name: tensor for tensor in way.payload}
    return spec.graph_inputs(), given_by_read(spec) | payload


def write_signature(spec: StepSpec, way: Way) -> tuple[Tensors, Tensors]:
    """What a write may take, and what it gives: the next states that hard gates guard."""
    read = given_by_read(spec)
    payload = {tensor.name: tensor for tensor in way.payload}
    gives = {name: t for name, t in spec.graph_outputs().items() if name not in read}
    return spec.graph_inputs() | read | payload, gives


def check_payload(spec: StepSpec, way: Way) -> None:
    """Check that no tensor of a payload is called like one of the step's own."""
    names = [tensor.name for tensor in way.payload]
    own = {*spec.graph_inputs(), *spec.graph_outputs()}
    twice = sorted(name for name, count in Counter(names).items() if name in own or count > 1)
    if twice:
        raise SpecError(
            "a tensor of the payload has the name of another tensor",
            found=", ".join(twice),
            remedy="export the bundle again",
        )
