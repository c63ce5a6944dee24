"""What a manifest says of the check that a bundle passed, and of what lower precision saved."""

from __future__ import annotations

from typing import Literal

from stategate.contract.specs import Record

NOISE = "noise says nothing about real inputs"


class InputsRef(Record, frozen=True):
    """Where the inputs of a check came from.

    Attributes:
        kind: ``recording`` of the user's; the ``benchmark`` of a zoo model; ``ranges`` that the
            user declared, drawn from evenly; ``fitting`` where the graph itself says what its
            inputs are; ``noise`` for at least one input; ``unknown`` where nobody said, as in
            bundles of version 1.
        detail: Name of the recording, the ranges, or what the graph says.
    """

    kind: Literal["recording", "benchmark", "ranges", "fitting", "noise", "unknown"] = "unknown"
    detail: str = ""

    @property
    def words(self) -> str:
        """In words, as after "1,000 steps of"."""
        names = {"ranges": "declared ranges", "unknown": "unnamed inputs"}
        names["fitting"] = "random numbers that fit the model:"
        return f"{names.get(self.kind, self.kind)} {self.detail}".strip()


class Verification(Record, frozen=True):
    """Receipt of the parity check that the bundle passed before it was sealed.

    Attributes:
        reference: What the bundle was compared with.
        engine: Engine and version that stepped the bundle.
        steps: Closed-loop steps, each side on its own state.
        max_output_error: Largest difference of any output element, in units of the largest
            magnitude that the reference's tensor reached in the run; in a
            pool each session's by itself.
        max_chunk_error: The same with the chunk graph; None where there is none.
        max_state_error: The same of the states. Both are None where integers parted, which has no
            measure and which lower precision alone may.
        gate_flips: Decisions that differed; more than none fails in float32.
        tolerance: What the two errors were held against; in lower precision the output error
            alone, and None where that was left to the drift test.
        gate_openings: Steps in which each hard gate was open, summed over the sessions of a pool;
            0 or all of them means that the check saw only one side of the gate.
        flip_rate: Share of all gate decisions that differed.
        max_flip_rate: What that was held against; None in float32, where none may differ.
        accepted: Who let a candidate pass that was beyond these limits, and why; None where it
            kept them.
        inputs: What both sides were stepped through.
        notes: What the check could not see, one sentence each.
        max_fused_error: As `max_output_error` over the golden episode, in one graph where the
            bundle runs in two; None where it does not.
        max_prologue_error: Largest difference of any state that the prologue fills; None without.
    """

    reference: str
    engine: str
    steps: int
    max_output_error: float | None
    max_state_error: float | None
    gate_flips: int
    tolerance: float | None
    gate_openings: dict[str, int]
    max_chunk_error: float | None = None
    flip_rate: float = 0.0
    max_flip_rate: float | None = None
    accepted: str | None = None
    max_fused_error: float | None = None
    inputs: InputsRef = InputsRef()
    notes: tuple[str, ...] = ()
    max_prologue_error: float | None = None

    @property
    def errors(self) -> str:
        """Both errors in words."""
        output, state = (
            "without measure" if error is None else f"{error:.2g}"
            for error in (self.max_output_error, self.max_state_error)
        )
        return f"output error {output}, state error {state}"


class LowerPrecision(Record, frozen=True):
    """Sizes of a bundle in lower precision, beside those of the float model.

    Attributes:
        float_graph_bytes: The step's graph before.
        graph_bytes: The step's graph in this bundle.
        float_state_bytes: All states before; those of this bundle are in the manifest.
    """

    float_graph_bytes: int
    graph_bytes: int
    float_state_bytes: int
