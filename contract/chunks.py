"""Several steps in one call: the signature of a chunk graph beside that of the step."""

from __future__ import annotations

import msgspec

from stategate.contract.errors import SpecError
from stategate.contract.specs import GateSpec, StepSpec, TensorSpec

VALID = "valid"
"""Input of a chunk graph: which of its steps are meant; what comes after them is padding."""


def chunked(spec: StepSpec, steps: int) -> StepSpec:
    """The signature of a graph that takes several steps at once.

    Inputs, outputs and gates get a time axis behind their leading one, ``(1, steps, ...)``; states,
    constants and thresholds are those of the step. The input `VALID`, ``(1, steps)`` bool, is true
    up to the last step that is meant; states are then those after that step.
    """
    if type(steps) is not int or steps < 2:
        raise SpecError("a chunk takes several steps", found=steps, expected="2 or more")
    shapes = {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}
    shapes |= {gate.name: gate.shape for gate in spec.gates}
    rowless = [name for name, shape in shapes.items() if shape[:1] != (1,)]
    if rowless:
        raise SpecError(
            "a chunk puts its time axis behind a leading axis of 1",
            found=f"none in {', '.join(rowless)}",
        )
    if VALID in spec.graph_inputs():
        raise SpecError(f"{VALID!r} is an input of every chunk graph", remedy="rename the other")

    def timed(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, steps, *shape[1:])

    def gate(one: GateSpec) -> GateSpec:
        return msgspec.structs.replace(one, shape=timed(one.shape))

    return StepSpec(
        (
            *(TensorSpec(t.name, timed(t.shape), t.dtype) for t in spec.inputs),
            TensorSpec(VALID, (1, steps), "bool"),
        ),
        tuple(TensorSpec(t.name, timed(t.shape), t.dtype) for t in spec.outputs),
        spec.states,
        tuple(gate(one) for one in spec.gates),
        spec.constants,
    )
