"""Will it fit: arithmetic over what a bundle holds and what is known of a device.

Memory is predicted from costs that were measured (``costs/``, a file an engine); time is only
bounded from below, by the roofline: no step can be faster, and none is promised to be as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from stategate.contract.errors import TargetError
from stategate.contract.precision import PrecisionPlan
from stategate.targets.profile import Count, Figure, TargetProfile
from stategate.targets.toml_tables import read_table

Verdict = Literal["fits", "does not fit", "not legal", "unknown"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a step of a bundle holds and does; all rows of a pool together."""

    model: str  # its name
    precision: str  # name of its precision plan
    sessions: int  # sessions that one step serves
    graph_bytes: int  # the serialised graph, or the library that the native engine has of it
    # its constants, as they are once those that depend on constants alone are computed, as an
    # engine does when it loads them
    constant_bytes: int
    dequantized_bytes: int  # integers that are widened in each step; not among the former
    widest_bytes: int  # the largest of them, once it is widened
    nodes: int  # nodes of the graph
    state_bytes: int  # one bank of the states
    # all that the runtime keeps of them: two banks, and initial values that are not zero
    state_buffer_bytes: int
    bound_bytes: int  # inputs, outputs and gates
    activation_bytes: int  # largest sum of values between nodes that are alive at once
    multiply_adds: int  # of matrix products and convolutions; other arithmetic is not counted
    unsized: int  # values whose shape the graph does not tell; they count as nothing
    branches: int  # graphs inside the graph
    # growth of the key-value cache that the memory replaces; None where it replaces none
    kv_bytes_per_step: int | None
    snapshot_bytes: int  # a snapshot of one session
    # whether TensorRT, which keeps the states of one session itself, could step it
    in_tensorrt: bool = True


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine costs beside the model, each figure as it was measured."""

    engine: str  # which one
    # resident memory of Python with the runtime and the engine's library imported
    process_bytes: Figure[Count]
    session_bytes: Figure[Count]  # what the first session adds whatever the model
    node_bytes: Figure[Count]  # for each node
    # how often the serialised graph, or the library made of it, is kept
    graph_copies: Figure[Count]
    constant_copies: Figure[Count]  # how often a constant is kept beside the serialised graph
    # the same of an integer constant that is widened in each step
    dequantized_copies: Figure[Count]
    widened_copies: Figure[Count]  # how often the largest of those is kept in its widened form
    activation_copies: Figure[Count]  # how often the activations are kept
    # how often the constants, or the serialised graph where that is larger, are held beside all
    # this while the bundle is opened
    opening_copies: Figure[Count]


@dataclass(frozen=True, slots=True)
class Memory:
    """Predicted resident memory in bytes, by what takes it."""

    process: int  # Python, the runtime and the engine's library
    engine: int  # what the engine adds for any model: a fixed part, nodes and operators
    weights: int  # the engine's copies of the constants and what it widens of them, or the library
    states: int  # banks of all sessions
    activations: int  # workspace of a step, inputs and outputs, of all sessions
    opening: int  # what opening takes on top for a moment, and gives back
    assumptions: tuple[str, ...]  # what is not known of it

    @property
    def added(self) -> int:
        """What opening and stepping the bundle adds to a process that has all imported."""
        return self.engine + self.weights + self.states + self.activations

    @property
    def total(self) -> int:
        """All that stays."""
        return self.process + self.added

    @property
    def peak(self) -> int:
        """The most that there is at any time."""
        return self.total + self.opening


@dataclass(frozen=True, slots=True)
class Fit:
    """A bundle on a device."""

    target: str  # the device
    verdict: Verdict  # whether it fits
    reason: str  # why, in a sentence
    memory: Memory  # what it takes
    memory_bytes: int | None  # what the device has; None: unknown
    reserve_bytes: int | None  # what firmware and system keep of that; None: unknown
    # what is left once it is open, the reserve taken off where it is known; None: unknown
    left_bytes: int | None
    build_peak_bytes: dict[str, int | None]  # what opening takes at most, by engine; None: unknown
    snapshot_space_bytes: int  # two slots for each session, in whole blocks
    # the key-value cache that the memory replaces, at the horizon; None: it replaces none
    kv_bytes: int | None
    kv_fits: bool | None  # whether that would fit beside the rest; None where either is unknown
    # a step's weights and states at the peak bandwidth, in microseconds: a bound for what no cache
    # holds, and not a promise. None: unknown.
    bandwidth_floor_us: float | None
    compute_floor_us: float | None  # its products at the accelerator's dense peak; None: unknown
    legal: tuple[str, ...]  # engines that can step it there, with its element types


def load_costs(engine: str = "onnxruntime") -> Costs:
    """Read what an engine costs."""
    return read_table("costs", engine, "engine", Costs)


def predict(footprint: Footprint, costs: Costs, sessions: int | None = None) -> Memory:
    """Resident memory of a bundle."""
    share = (sessions or footprint.sessions) / footprint.sessions
    weights = (
        _cost(costs, "graph_copies") * footprint.graph_bytes
        + _cost(costs, "constant_copies") * footprint.constant_bytes
        + _cost(costs, "dequantized_copies") * footprint.dequantized_bytes
        + _cost(costs, "widened_copies") * footprint.widest_bytes
    )
    engine = _cost(costs, "session_bytes") + _cost(costs, "node_bytes") * footprint.nodes
    read = max(footprint.graph_bytes, footprint.constant_bytes)
    activations = _cost(costs, "activation_copies") * footprint.activation_bytes
    notes = []
    if footprint.unsized:
        notes.append(f"{footprint.unsized} values have no shape in the graph and count as nothing")
    if _cost(costs, "widened_copies") * footprint.widest_bytes:
        notes.append(
            "a step widens integers into memory that it takes anew; this is the most that the "
            "allocator was seen to keep of it, and may be twice of what is found"
        )
    if footprint.branches:
        notes.append("the graph has branches, whose copies were not measured: this may be far off")
    if share != 1:
        notes.append("sessions share one graph, as in a pool; each bundle of its own has its own")
    return Memory(
        process=_cost(costs, "process_bytes"),
        engine=engine,
        weights=weights,
        states=round(footprint.state_buffer_bytes * share),
        activations=round((activations + footprint.bound_bytes) * share),
        opening=_cost(costs, "opening_copies") * read,
        assumptions=tuple(notes),
    )


def fit(
    footprint: Footprint,
    plan: PrecisionPlan,
    target: TargetProfile,
    costs: Costs,
    *,
    sessions: int | None = None,
    horizon_steps: int,
) -> Fit:
    """Whether a bundle fits a device, and what bounds its step there."""
    count = sessions or footprint.sessions
    memory = predict(footprint, costs, count)
    has, reserve = target.memory_bytes.value, target.system_reserve_bytes.value
    spare = None if has is None else has - (reserve or 0) - memory.total
    kv = footprint.kv_bytes_per_step
    kv_bytes = None if kv is None else kv * horizon_steps * count
    verdict, reason = _verdict(plan, target, costs.engine, memory, spare)
    share = count / footprint.sessions
    return Fit(
        target=target.name,
        verdict=verdict,
        reason=reason,
        memory=memory,
        memory_bytes=has,
        reserve_bytes=reserve,
        left_bytes=spare,
        # Of TensorRT's builder no figure was found but that a build restarted an 8 GB board
        # (TensorRT-LLM issue 3263).
        build_peak_bytes={costs.engine: memory.peak}
        | ({"tensorrt": None} if footprint.in_tensorrt else {}),
        snapshot_space_bytes=2 * count * -(-footprint.snapshot_bytes // 4096) * 4096,
        kv_bytes=kv_bytes,
        kv_fits=None if kv_bytes is None or spare is None else kv_bytes <= spare,
        bandwidth_floor_us=_bandwidth_floor_us(footprint, target, share),
        compute_floor_us=_compute_floor_us(footprint, plan, target, share),
        legal=tuple(
            engine
            for engine in target.engines
            if not target.lacks(plan, engine) and (footprint.in_tensorrt or engine != "tensorrt")
        ),
    )


def _cost(costs: Costs, name: str) -> int:
    figure: Figure[Count] = getattr(costs, name)
    if figure.value is None:
        raise TargetError(f"{name} of {costs.engine} is not known", found=figure.source)
    return figure.value


def _verdict(
    plan: PrecisionPlan, target: TargetProfile, engine: str, memory: Memory, spare: int | None
) -> tuple[Verdict, str]:
    try:
        target.check(plan, engine)
    except TargetError as refusal:
        what, _, expected = str(refusal).partition("expected: ")
        return "not legal", f"{what.splitlines()[0]}: it runs {expected.splitlines()[0]}"
    if spare is None:
        return "unknown", f"its memory is not known: {target.memory_bytes.source}"
    if spare < memory.opening:
        lacks = memory.opening - spare
        return "does not fit", f"{lacks:,} bytes too little to open it, which takes {memory.peak:,}"
    if target.system_reserve_bytes.value is None:
        return "fits", f"{spare:,} bytes are left for the system, whose need no source tells"
    return "fits", f"{spare:,} bytes are left"


def _bandwidth_floor_us(footprint: Footprint, target: TargetProfile, share: float) -> float | None:
    """Weights and states read once; writing is left out, for a quiet step writes nothing."""
    peak = target.peak_bandwidth_gb_per_s
    moved = footprint.constant_bytes + footprint.dequantized_bytes + footprint.state_bytes * share
    return None if peak is None else moved / (peak * 1e9) * 1e6


def _compute_floor_us(
    footprint: Footprint, plan: PrecisionPlan, target: TargetProfile, share: float
) -> float | None:
    """Two operations a multiply-add, in the element type that the products are computed in."""
    peak = target.dense_tops(plan.activations)
    return None if peak is None else 2 * footprint.multiply_adds * share / (peak * 1e12) * 1e6
