"""What a model takes, gives and remembers: tensors, states, gates.

These are the words of the contract. The exporter writes them into a manifest, the runtime relies
on nothing else. All are frozen and check themselves when made.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import SpecError
from stategate.contract.reading import printable, text_with_controls
from stategate.contract.rings import check_rings


def fits(value: float, dtype: str) -> bool:
    """Whether a number survives its dtype: exactly for integers, without overflow for floats."""
    with np.errstate(all="ignore"):
        stored = np.array(value).astype(dtype).item()
    return math.isfinite(stored) if dtype.startswith("float") else stored == value


def _check_tensor(kind: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
    if not name:
        raise SpecError(f"{kind} without a name")
    if text_with_controls(name) is not None or len(name) > NAME_CHARACTERS:
        raise SpecError(
            f"this cannot be the name of a {kind}",
            found=printable(name),
            expected=f"at most {NAME_CHARACTERS:,} characters that print",
            remedy="rename it in the model",
        )
    dtype_named(dtype)
    if any(extent <= 0 for extent in shape):
        raise SpecError(
            f"{kind} {name!r} has no fixed size",
            found=f"shape {list(shape)}",
            expected="every extent a positive integer",
            remedy="pin dynamic axes (stategate adopt --dim NAME=N) or export with batch 1",
        )
    if len(shape) > _MAX_RANK or _tensor_bytes(shape, dtype) > _MAX_BYTES:
        raise SpecError(
            f"{kind} {name!r} is too large",
            found=f"shape {list(shape)[:8]}",
            expected=f"at most {_MAX_RANK} axes and {_MAX_BYTES} bytes",
        )


NAME_CHARACTERS = 1000
"""Of a tensor's name; exporters write the path of a module, which has some hundred."""
_MAX_RANK = 32
_MAX_BYTES = 1 << 40  # more than any device has; keeps a hostile manifest from overflowing


def _tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * dtype_named(dtype).numpy.itemsize


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in the contract: frozen, and strict about unknown fields."""


class TensorSpec(Record, frozen=True):
    """An input or output of one step, of fixed shape and dtype.

    Attributes:
        name: Its name in the graph.
        shape: Its fixed shape; the first axis is the batch: 1, or the sessions of a pool.
        dtype: Element type.
        safe: Of an output: what is answered where a step fails before the episode has a good
            answer. One number for all elements, or one for each element of a session; None where
            nothing is safe, and the fault is raised.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    safe: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the name, extents and dtype, and the safe values."""
        _check_tensor("tensor", self.name, self.shape, self.dtype)
        if self.safe is None:
            return
        values = self.safe if isinstance(self.safe, tuple) else (self.safe,)
        elements = math.prod(self.shape)
        if len(values) not in (1, elements, elements // self.shape[0] if self.shape else 1):
            raise SpecError(
                f"the safe value of output {self.name!r} has another size",
                found=f"{len(values)} numbers",
                expected=f"one, or one for each element of {list(self.shape)}",
            )
        if not all(math.isfinite(value) and fits(value, self.dtype) for value in values):
            raise SpecError(
                f"output {self.name!r} cannot have this safe value",
                found=", ".join(map(str, values)),
                expected=f"finite numbers that {self.dtype} holds",
            )

    def safe_array(self) -> NDArray[Any] | None:
        """The safe values in the tensor's shape, the same for every session of a pool."""
        return None if self.safe is None else np.resize(self.safe, self.shape).astype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return _tensor_bytes(self.shape, self.dtype)


class ConstantSpec(Record, frozen=True):
    """An input that never changes, such as a sample rate: the runtime fills it once."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: bool | int | float

    def __post_init__(self) -> None:
        """Check the name, extents and dtype, and that the value fits it."""
        _check_tensor("constant", self.name, self.shape, self.dtype)
        try:
            is_held = math.isfinite(self.value) and fits(self.value, self.dtype)
        except OverflowError:
            is_held = False
        if not is_held:
            raise SpecError(
                f"constant {self.name!r} cannot have this value",
                found=self.value,
                expected=f"a finite {self.dtype}",
            )

    def array(self) -> np.ndarray:
        """The tensor: its value in every element."""
        return np.full(self.shape, self.value, self.dtype)


class StateSpec(Record, frozen=True):
    """A tensor carried from step to step.

    Attributes:
        name: Graph input that takes the state.
        shape: Its fixed shape; the first axis is the batch: 1, or the sessions of a pool.
        dtype: Element type.
        next_name: Graph output that gives the next state; ``<name>_next`` when empty.
        gate: Name of the gate that guards it, or None: it changes every step.
        layout: Meaning of the axes, for the reader ("key, value").
        init_file: File in the bundle with the initial bytes (C order, little endian), or None
            for zeros.
        bytes: Size of one bank, all rows of a pool together; computed when left at 0, checked
            otherwise.
        write_bytes: Bytes that one opening of its gate replaces, for gates of heads, slots or
            channels that do not replace an equal share of the state; 0 where they do.
        cursor: Of a ring: the state that says how many of its rows, along axis 1, are held. A write
            puts one row behind them, and that row, without axis 1, is what the graph gives as its
            next value. None for a state that is replaced as a whole.
        folds: The ring whose rows a write of this state takes in; None for any other state.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    next_name: str = ""
    gate: str | None = None
    layout: str = ""
    init_file: str | None = None
    bytes: int = 0
    write_bytes: int = 0
    cursor: str | None = None
    folds: str | None = None

    def __post_init__(self) -> None:
        """Fill the derived fields and check them."""
        _check_tensor("state", self.name, self.shape, self.dtype)
        nbytes = _tensor_bytes(self.shape, self.dtype)
        if self.bytes == 0:
            msgspec.structs.force_setattr(self, "bytes", nbytes)
        if self.bytes != nbytes:
            raise SpecError(
                f"state {self.name!r} states the wrong size",
                found=f"{self.bytes} bytes",
                expected=f"{nbytes} bytes for {list(self.shape)} {self.dtype}",
            )
        if not 0 <= self.write_bytes <= nbytes:
            raise SpecError(
                f"one write cannot replace so much of state {self.name!r}",
                found=f"{self.write_bytes} bytes",
                expected=f"0 to {nbytes}",
            )
        if not self.next_name:
            msgspec.structs.force_setattr(self, "next_name", f"{self.name}_next")
        if self.next_name == self.name:
            raise SpecError(f"state {self.name!r} has the same name as input and output")
        if self.cursor is not None and (len(self.shape) < 2 or self.write_bytes):
            raise SpecError(
                f"the ring {self.name!r} has no rows",
                found=f"shape {list(self.shape)}, write_bytes {self.write_bytes}",
                expected="rows along axis 1, all of one size",
            )

    @property
    def rows(self) -> int:
        """Rows of a ring."""
        return self.shape[1]

    @property
    def next_value(self) -> TensorSpec:
        """What the graph gives for the next step: all of the state, or the new row of a ring."""
        shape = self.shape if self.cursor is None else (self.shape[0], *self.shape[2:])
        return TensorSpec(self.next_name, shape, self.dtype)


def is_threshold(value: float) -> bool:
    """Whether a gate can be compared with it: finite, in float32 too."""
    return math.isfinite(value) and fits(value, "float32")


class GateSpec(Record, frozen=True):
    """A number, or a vector of numbers, that says whether this step may change what it guards.

    A hard gate is open where ``gate > threshold``. A step whose gate is closed everywhere leaves
    every byte of the guarded states alone.

    Attributes:
        name: Graph output that gives the gate.
        kind: ``hard`` (compared with the threshold) or ``soft`` (scales the change; every step is
            a write).
        shape: Shape of the gate output; more than one element means per head or per slot.
        threshold: Where a hard gate opens; None for a soft gate.
        threshold_input: Graph input through which the runtime feeds the threshold, for models
            whose outputs depend on the decision; None where only the host decides.
        granularity: What one element of the gate guards.
        threshold_range: Thresholds that the model can have, from the first number up to but not the
            second, as float32 holds them; None for any.
        expected_write_rate: Share of steps that write, in [0, 1], or None where never measured.
        expected_from: Where that figure comes from.
    """

    name: str
    kind: Literal["hard", "soft"] = "hard"
    shape: tuple[int, ...] = (1,)
    threshold: float | None = None
    threshold_input: str | None = None
    granularity: Literal["step", "head", "slot", "channel"] = "step"
    expected_write_rate: float | None = None
    expected_from: str | None = None
    threshold_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the threshold against the kind and the rate against its range."""
        _check_tensor("gate", self.name, self.shape, "float32")
        if self.kind == "hard" and (self.threshold is None or not is_threshold(self.threshold)):
            raise SpecError(
                f"hard gate {self.name!r} has no threshold that float32 can hold",
                found=self.threshold,
            )
        if self.kind == "soft" and (self.threshold is not None or self.threshold_input is not None):
            raise SpecError(
                f"soft gate {self.name!r} has a threshold",
                remedy="make it hard, or leave threshold and threshold_input out",
            )
        if self.threshold is not None and not self.allows(self.threshold):
            raise SpecError(
                f"gate {self.name!r} cannot have this threshold",
                found=f"{self.threshold!r}, {np.float32(self.threshold)!s} in float32",
                expected="{:g} up to but not {:g}".format(*self.threshold_range or ()),
            )
        rate = self.expected_write_rate
        if rate is not None and not 0.0 <= rate <= 1.0:
            raise SpecError(
                f"gate {self.name!r}: expected_write_rate is a share of steps",
                found=rate,
                expected="0 to 1",
            )

    def allows(self, threshold: float) -> bool:
        """Whether the gate can have it, as float32 holds it."""
        low, high = self.threshold_range or (-math.inf, math.inf)
        return is_threshold(threshold) and low <= float(np.float32(threshold)) < high


class StepSpec(Record, frozen=True):
    """The signature of one step: ``(inputs, states) -> (outputs, next states, gates)``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    gates: tuple[GateSpec, ...] = ()
    constants: tuple[ConstantSpec, ...] = ()

    def __post_init__(self) -> None:
        """Check that names are unique and that every guard and threshold has its gate."""
        input_names = [t.name for t in self.inputs] + [s.name for s in self.states]
        input_names += [c.name for c in self.fixed_inputs]
        output_names = [t.name for t in self.outputs] + [s.next_name for s in self.states]
        output_names += [g.name for g in self.gates]
        for side, names in (("input", input_names), ("output", output_names)):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise SpecError(
                    f"two {side}s share one name",
                    found=", ".join(twice),
                    expected="every input, output, state and gate with a name of its own",
                )
        both = sorted(set(input_names) & set(output_names))
        if both:
            raise SpecError("a graph cannot have an input and an output of one name", found=both)
        if not self.inputs:
            raise SpecError(
                "the model takes no input",
                expected="at least one that is neither a state nor a constant",
                remedy="check which inputs were declared as states",
            )
        if not self.outputs:
            raise SpecError(
                "the model gives no output",
                expected="at least one that is not a next state: a caller would get nothing back",
                remedy="check which outputs were declared as next states; where the answer is also "
                "fed back, give it twice, the second time under a name of its own",
            )
        if not self.states:
            raise SpecError(
                "the model declares no state",
                expected="at least one tensor carried from step to step",
                remedy="a stateless model needs no stategate; ONNX Runtime alone will do",
            )
        unsafe = [t.name for t in self.outputs if t.safe is None]
        if [t.name for t in self.inputs if t.safe is not None] or 0 < len(unsafe) < len(
            self.outputs
        ):
            raise SpecError(
                "a safe answer needs a safe value for every output, and for nothing else",
                found=f"none for {', '.join(unsafe)}" if unsafe else "one for an input",
                expected="every output or none",
            )
        gates = {g.name for g in self.gates}
        for state in self.states:
            if state.gate is not None and state.gate not in gates:
                raise SpecError(
                    f"state {state.name!r} is guarded by a gate that does not exist",
                    found=state.gate,
                    expected=", ".join(sorted(gates)) or "no gates are declared",
                )
        check_rings(self.states, set(self.thresholds))
        idle = sorted(set(self.thresholds) - {state.gate for state in self.states})
        if idle:
            raise SpecError(
                "a hard gate guards no state, so its writes would be counted wrongly",
                found=", ".join(idle),
                expected="a state that names it",
                remedy=f'StateSpec(..., gate="{idle[0]}"), or kind="soft"',
            )

    @property
    def fixed_inputs(self) -> tuple[ConstantSpec, ...]:
        """Inputs that the runtime fills once: constants, and the thresholds of hard gates."""
        thresholds = (
            ConstantSpec(g.threshold_input, (1,), "float32", g.threshold)
            for g in self.gates
            if g.threshold_input is not None and g.threshold is not None
        )
        return (*self.constants, *thresholds)

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of the hard gates, by gate name."""
        return {g.name: g.threshold for g in self.gates if g.threshold is not None}

    @property
    def deciding_gates(self) -> tuple[GateSpec, ...]:
        """Gates that decide what is remembered; that of folds only says where it is put."""
        folds = {state.gate for state in self.states if state.folds is not None}
        return tuple(gate for gate in self.gates if gate.name not in folds)

    def graph_inputs(self) -> dict[str, TensorSpec]:
        """Everything that a step's graph takes, by name: inputs, constants, states."""
        constants = (TensorSpec(c.name, c.shape, c.dtype) for c in self.fixed_inputs)
        states = (TensorSpec(s.name, s.shape, s.dtype) for s in self.states)
        return {tensor.name: tensor for tensor in (*self.inputs, *constants, *states)}

    def graph_outputs(self) -> dict[str, TensorSpec]:
        """Everything that a step's graph gives, by name: outputs, gates, next states."""
        gates = (TensorSpec(g.name, g.shape) for g in self.gates)
        states = (state.next_value for state in self.states)
        return {tensor.name: tensor for tensor in (*self.outputs, *gates, *states)}

    @property
    def state_bytes(self) -> int:
        """Bytes of one bank of all states together, all rows: what the model remembers."""
        return sum(state.bytes for state in self.states)
