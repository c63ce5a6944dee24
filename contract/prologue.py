"""A prologue: a graph that runs once and gives the states with which an episode begins."""

from __future__ import annotations

from collections.abc import Mapping

from stategate.contract.errors import SpecError
from stategate.contract.specs import Record, StepSpec, TensorSpec


class Prologue(Record, frozen=True):
    """What a session is given once, before the first step of an episode."""

    inputs: tuple[TensorSpec, ...]  # what the graph takes
    # output of the graph by the state that it fills; other states begin as the model does
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check that it takes and gives something, each under a name of its own."""
        names = [tensor.name for tensor in self.inputs]
        if not names or not self.outputs:
            raise SpecError(
                "a prologue takes at least one input, and fills at least one state",
                found=f"{len(names)} inputs, {len(self.outputs)} states",
            )
        for kind, named in (("inputs", names), ("states", list(self.outputs.values()))):
            if len(set(named)) < len(named):
                raise SpecError(
                    f"two {kind} of the prologue share one name", found=", ".join(named)
                )

    def check(self, step: StepSpec) -> None:
        """Hold it against the model whose episodes it begins."""
        states = [state.name for state in step.states]
        unknown = sorted(set(self.outputs) - set(states))
        if unknown:
            raise SpecError(
                "the prologue fills a state that the model lacks",
                found=", ".join(unknown),
                expected=", ".join(states),
            )
