"""All memory of a session, allocated once when it opens.

Each state has two banks. A step reads one and writes the other; committing a write swaps their
roles, a quiet step swaps nothing. States that one gate guards form a group and swap together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract import Bundle, GateSpec, Manifest, StateSpec
from stategate.contract.errors import EngineError

Array = NDArray[Any]


_BLOCK = 8192  # elements of one look; from 10,000 on OpenBLAS would wake other threads
_FEW = 16  # elements that Python adds before NumPy has been called
_ZEROS = {dtype: np.zeros(_BLOCK, dtype) for dtype in "fd"}
_HALF_INF, _HALF_MINUS_INF = 0x7C00, 0xFC00


def is_finite(flat: Array) -> bool:
    """Whether a 1-d array holds neither NaN nor Inf, without a temporary of its size.

    Zero times a finite number is zero, zero times NaN or Inf is NaN. So one product with zeros
    tells, in the same time for numbers of every size: it neither overflows nor becomes subnormal.
    ``vdot`` and not ``dot``: it does not warn.
    """
    dtype, size = flat.dtype.char, flat.size
    zeros = _ZEROS.get(dtype)
    if zeros is not None and size <= _BLOCK:
        return isfinite(np.vdot(zeros[:size], flat))
    if zeros is not None:
        return all(is_finite(flat[at : at + _BLOCK]) for at in range(0, size, _BLOCK))
    if flat.dtype.kind != "f" or size == 0:
        return True
    if dtype != "e":
        return bool(np.isfinite(flat).all())
    # As integers, which is six times faster: what is not finite has the largest exponent.
    positive, negative = flat.view(np.int16).max(), flat.view(np.uint16).max()
    return bool(positive < _HALF_INF and negative < _HALF_MINUS_INF)


def finiteness(flat: Array) -> Callable[[], bool]:
    """`is_finite` of one buffer that is looked at in every step, with as few calls as it takes."""
    if flat.dtype.char == "f" and flat.size <= _FEW:
        # The sum is one of float64, where float32 cannot overflow; NaN and Inf stay in it.
        view = flat.data
        return lambda: isfinite(sum(view))
    if flat.dtype.char in _ZEROS and flat.size <= _BLOCK:
        zeros = _ZEROS[flat.dtype.char][: flat.size]
        return lambda: isfinite(np.vdot(zeros, flat))
    return partial(is_finite, flat)


@dataclass(frozen=True, slots=True)
class Slot:
    """One named tensor of the session."""

    name: str  # its name in the graph
    array: Array  # the buffer in the tensor's shape
    flat: Array  # the same memory as a 1-d view
    numbers: (
        memoryview  # the same for Python, which takes one number from it in a third of the time
    )
    finite: Callable[[], bool]  # whether it holds neither NaN nor Inf now

    @classmethod
    def allocate(cls, name: str, shape: tuple[int, ...], dtype: str) -> Slot:
        """A zeroed buffer."""
        array = np.zeros(shape, dtype=dtype)
        flat = array.reshape(-1)
        return cls(name, array, flat, flat.data, finiteness(flat))


@dataclass(frozen=True, slots=True)
class StateBanks:
    """The two banks of one state."""

    spec: StateSpec  # what it is
    banks: tuple[Slot, Slot]  # two buffers of ``spec.shape``
    initial: Array  # what a reset puts back
    # of a ring: where the engine leaves the row that a write appends; None for others
    row: Slot | None = None

    def target(self, live: bool) -> Slot:
        """Where the engine leaves the next value, while bank ``live`` is read."""
        return self.row or self.banks[not live]


@dataclass(frozen=True, slots=True)
class Group:
    """States that swap together."""

    bit: int  # value of this group's bit in the parity mask
    gate: GateSpec | None  # the hard gate that decides, or None: every step is a write
    gate_slot: Slot | None  # where the engine leaves the gate's value, if there is a gate
    states: tuple[StateBanks, ...]  # the states, possibly none
    whole: bool  # whether an opening anywhere in the gate replaces all that it guards
    # scratch for which elements of a vector gate are open; None for a single one
    open_mask: NDArray[np.bool_] | None
    # whether they are rings: a write appends a row to the live bank, and swaps nothing
    appends: bool


@dataclass(frozen=True, slots=True)
class Buffers:
    """Everything that an engine binds to."""

    inputs: tuple[Slot, ...]  # what a caller fills each step
    # inputs that are filled once: thresholds, and constants of adopted graphs
    constants: tuple[Slot, ...]
    outputs: tuple[Slot, ...]  # what a step gives back
    gates: tuple[Slot, ...]  # gate outputs, hard and soft
    states: tuple[StateBanks, ...]  # every state, in the manifest's order
    groups: tuple[Group, ...]  # the same states by what decides over them
    payload: tuple[Slot, ...]  # what a read hands to a write, where the step is run in two

    @classmethod
    def allocate(cls, manifest: Manifest, initial: dict[str, Array]) -> Buffers:
        """Buffers for a manifest.

        Args:
            manifest: What to allocate for.
            initial: Initial values by state name; zeros for those not named.
        """
        gates = {g.name: Slot.allocate(g.name, g.shape, "float32") for g in manifest.gates}
        constants = []
        for fixed in manifest.step.fixed_inputs:
            slot = Slot.allocate(fixed.name, fixed.shape, fixed.dtype)
            slot.array.fill(fixed.value)
            constants.append(slot)
        states = tuple(_banks(spec, initial.get(spec.name)) for spec in manifest.states)
        hard = {gate.name: gate for gate in manifest.gates if gate.kind == "hard"}
        guarded: dict[str | None, list[StateBanks]] = {}
        for state in states:
            guarded.setdefault(state.spec.gate if state.spec.gate in hard else None, []).append(
                state
            )
        groups: list[Group] = []
        for gate_name in (*hard, None):
            members = tuple(guarded.get(gate_name, ()))
            if gate_name is None and not members:
                continue
            size = gates[gate_name].flat.size if gate_name else 1
            groups.append(
                Group(
                    bit=1 << len(groups),
                    gate=hard[gate_name] if gate_name else None,
                    gate_slot=gates[gate_name] if gate_name else None,
                    states=members,
                    whole=gate_name is None or hard[gate_name].granularity == "step",
                    open_mask=np.zeros(size, np.bool_) if size > 1 else None,
                    appends=any(state.row is not None for state in members),
                )
            )
        return cls(
            inputs=tuple(Slot.allocate(t.name, t.shape, t.dtype) for t in manifest.inputs),
            constants=tuple(constants),
            outputs=tuple(Slot.allocate(t.name, t.shape, t.dtype) for t in manifest.outputs),
            gates=tuple(gates.values()),
            states=states,
            groups=tuple(groups),
            payload=tuple(
                Slot.allocate(t.name, t.shape, t.dtype)
                for t in (manifest.way.payload if manifest.way else ())
            ),
        )

    def bit_of(self, state: StateBanks) -> int:
        """The parity bit of the group that a state belongs to."""
        return next(group.bit for group in self.groups if state in group.states)


def initial_states(bundle: Bundle) -> dict[str, Array]:
    """The initial states that a bundle carries, by name; others begin with zeros."""
    files = {file.path: file for file in bundle.manifest.files}
    initial = {}
    for state in bundle.manifest.states:
        if state.init_file is not None:
            raw = bundle.read(files[state.init_file])
            if len(raw) != state.bytes:
                raise EngineError(
                    f"the initial value of state {state.name!r} has the wrong size",
                    found=f"{len(raw)} bytes in {state.init_file}",
                    expected=f"{state.bytes} bytes",
                    remedy="export the bundle again",
                )
            flat = np.frombuffer(raw, np.dtype(state.dtype).newbyteorder("<")).astype(state.dtype)
            if not is_finite(flat):
                raise EngineError(
                    f"state {state.name!r} would start with NaN or Inf, and every step would fail",
                    found=state.init_file,
                    expected="finite numbers",
                    remedy="export the bundle again, from a state that is finite",
                )
            initial[state.name] = flat.reshape(state.shape)
    return initial


def _banks(spec: StateSpec, initial: Array | None) -> StateBanks:
    banks = tuple(Slot.allocate(spec.name, spec.shape, spec.dtype) for _ in range(2))
    start = np.zeros(spec.shape, dtype=spec.dtype) if initial is None else initial
    if initial is not None:
        for bank in banks:
            np.copyto(bank.array, start)
    # Zeros stay untouched, and so without pages, until the engine has agreed to the graph.
    row = Slot.allocate(spec.next_name, spec.next_value.shape, spec.dtype) if spec.cursor else None
    return StateBanks(spec, (banks[0], banks[1]), start, row)
