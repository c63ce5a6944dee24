"""A model that is ready to be verified: what frontends make, passes change, and `seal` packs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import msgspec
import numpy as np

from stategate.contract import CalibrationRecord, ObservationContract, StepSpec
from stategate.contract.backbone import BackboneRef
from stategate.contract.errors import CalibrationError
from stategate.contract.manifest import ModelRef
from stategate.contract.precision import PRESETS, PrecisionPlan
from stategate.contract.prologue import Prologue
from stategate.contract.split import Way

Arrays = Mapping[str, np.ndarray]


class Reference(Protocol):
    """The model as it was before export, on its own state."""

    name: str  # what it is, for the receipt

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step, and gates, by name."""
        ...


ADOPTED = "adopted"  # family of a model that came as an ONNX file
Role = Literal["step", "chunk", "read", "write", "prologue"]


@dataclass(frozen=True, slots=True)
class PrologueGraph:
    """A graph that gives the first states of an episode, beside what it was made from."""

    signature: Prologue
    graph: bytes  # serialised ONNX
    # what it must equal: the states by name, of the inputs by name
    reference: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is ready to be verified."""

    model: ModelRef  # where it comes from
    spec: StepSpec  # its signature with all sessions, thresholds as they shall be deployed
    graph: bytes  # serialised ONNX
    made_with: tuple[str, ...]  # packages whose versions go into the manifest
    # initial states that are not zero, by state name
    initial: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)  # facts that travelled with the model
    calibration: CalibrationRecord | None = None  # the record that set the thresholds
    sessions: int = 1  # how many sessions the graph serves at once
    chunk: bytes | None = None  # serialised ONNX of several steps at once, or None
    chunk_steps: int = 0  # how many steps that is
    plan: PrecisionPlan = PRESETS["float32"]  # what of it is in lower precision
    # bytes of its graph and of its states before that; None in float32
    float_sizes: tuple[int, int] | None = None
    way: Way | None = None  # how its step is run
    # serialised ONNX of the parts of a step that the way needs, by role
    parts: dict[Role, bytes] = field(default_factory=dict)
    # the step as C source, by name; empty where it has none
    c_source: dict[str, bytes] = field(default_factory=dict)
    c_inexact: tuple[str, ...] = ()  # operators of it whose last bits differ between C libraries
    no_native: str = ""  # why it has none, where one was asked for
    needs_native: bool = False  # whether a bundle without a native engine is refused
    # files that travel in the bundle and are never loaded, by path: the adopted file where
    # the step was made of it
    attached: dict[str, bytes] = field(default_factory=dict)
    prologue: PrologueGraph | None = None  # what begins its episodes
    observation: ObservationContract | None = None  # what its inputs and outputs mean

    backbone: BackboneRef | None = None  # among these files, where the step takes its features

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of its graph and of its states, those of the float model where it was one."""
        return self.float_sizes or (len(self.graph), self.spec.state_bytes)

    def calibrated(self, record: CalibrationRecord) -> Candidate:
        """The same model with the thresholds of a calibration record, beside those it has."""
        if record.model_sha256 != self.model.sha256:
            raise CalibrationError(
                "the calibration record is for another model",
                found=f"weights {record.model_sha256[:12]}",
                expected=f"weights {self.model.sha256[:12]}",
                remedy="calibrate again: stategate calibrate",
            )
        chosen = {gate.gate: gate for gate in record.gates}
        unknown = sorted(set(chosen) - {gate.name for gate in self.spec.gates})
        if unknown:
            raise CalibrationError("the record is for gates that the model lacks", found=unknown)
        before = self.calibration
        twice = [gate.gate for gate in before.gates if gate.gate in chosen] if before else []
        if twice:
            raise CalibrationError(
                "two calibration records set the same gate",
                found=", ".join(twice),
                expected="one record for each gate",
                remedy="leave one of them out",
            )
        gates = tuple(
            msgspec.structs.replace(
                gate,
                threshold=chosen[gate.name].threshold,
                expected_write_rate=chosen[gate.name].write_rate,
                expected_from=f"calibration over {record.steps} steps of {record.episodes}",
            )
            if gate.name in chosen
            else gate
            for gate in self.spec.gates
        )
        spec = msgspec.structs.replace(self.spec, gates=gates)
        if before:
            record = CalibrationRecord(
                record.model_sha256,
                f"{before.episodes}; {record.episodes}",
                before.steps + record.steps,
                before.gates + record.gates,
            )
        return replace(self, spec=spec, calibration=record)
