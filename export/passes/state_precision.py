"""States stored in float16 or int8 between steps: surgery on a traced step.

Everything between the stored bytes and the stored bytes stays float32. Where a next state equals
the state that the step was given, row by row, the old bytes are handed on: a closed gate, or the
closed head of an open one, leaves them alone. `stategate.contract.stored` has the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract import StateSpec, StepSpec
from stategate.contract.dtypes import dtype_named
from stategate.contract.errors import ExportError
from stategate.contract.stored import (
    FINER,
    KINDS,
    LEVELS,
    quantised,
    residual_name,
    scale_name,
    shared_axes,
    stored_layout,
)
from stategate.export.candidate import Candidate
from stategate.export.passes.graph import Writer, check_graph, opset_of, replace_all

Storage = Mapping[str, str]

_OPSET = 13  # of int8; from here on ReduceSum takes its axes as an input, as it is written here


def store_states(
    graph: onnx.ModelProto,
    spec: StepSpec,
    storage: Storage,
    error_feedback: bool = False,
    sessions: int = 1,
) -> tuple[onnx.ModelProto, StepSpec]:
    """Store states of a step in fewer bits.

    Returns:
        The new graph and its signature; the parts of a state have its gate.
    """
    _check(graph, spec, storage, error_feedback, sessions)
    model = ir.from_proto(graph)
    states: list[StateSpec] = []
    for state in spec.states:
        kind = storage.get(state.name, "float32")
        if kind == "float32":
            states.append(state)
            continue
        axes = shared_axes(state.shape, kind, sessions)
        parts = _parts(state, kind, axes, error_feedback)
        _StoreState(state, parts, axes, opset_of(graph))(model)
        states += parts
    stored = msgspec.structs.replace(spec, states=tuple(states))
    serialised = ir.to_proto(model)
    check_graph(serialised, stored, branch_free=False)
    return serialised, stored


def stored(candidate: Candidate, storage: Storage, error_feedback: bool = False) -> Candidate:
    """A candidate whose states are stored in fewer bits; see `store_states`.

    Its chunk is left out: between the steps of a chunk states stay float32, and it would not give
    what as many steps give.
    """
    graph = onnx.load_model_from_string(candidate.graph)
    model, spec = store_states(graph, candidate.spec, storage, error_feedback, candidate.sessions)
    initial: dict[str, np.ndarray] = {}
    for name, value in candidate.initial.items():
        kind = storage.get(name, "float32")
        if kind.startswith("int8"):
            whole, scale, residual = quantised(value, kind, error_feedback, candidate.sessions)
            initial |= {name: whole, scale_name(name): scale}
            initial |= {} if residual is None else {residual_name(name): residual}
        else:
            initial[name] = value.astype("float16") if kind == "float16" else value
    summary = _in_words(storage) + (" with error feedback" if error_feedback else "")
    return replace(
        candidate,
        spec=spec,
        graph=model.SerializeToString(deterministic=True),
        initial=initial,
        float_sizes=candidate.sizes,
        metadata=candidate.metadata | {"state_storage": summary},
        plan=msgspec.structs.replace(
            candidate.plan, state_storage=dict(storage), error_feedback=error_feedback
        ),
        chunk=None,
        chunk_steps=0,
    )


def _in_words(storage: Storage) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in storage.items())


def _check(
    graph: onnx.ModelProto, spec: StepSpec, storage: Storage, error_feedback: bool, sessions: int
) -> None:
    has_int8 = any(kind.startswith("int8") for kind in storage.values())
    if has_int8 and opset_of(graph) < _OPSET:
        raise ExportError(
            "states in int8 need a newer opset than that of the graph",
            found=f"opset {opset_of(graph)}",
            expected=f"{_OPSET} or newer",
            remedy="store them as float16, convert the file with onnx.version_converter, or export "
            "it anew",
        )
    if error_feedback and not has_int8:
        raise ExportError(
            "error feedback has nothing to feed back",
            found=_in_words(storage) or "all states in float32",
            expected="a state in int8",
        )
    states = {state.name: state for state in spec.states}
    for name, kind in storage.items():
        if name not in states:
            raise ExportError(
                "there is no such state to store", found=name, expected=", ".join(states)
            )
        if kind not in KINDS:
            why = "; NumPy, which holds the states, has no bfloat16" if kind == "bfloat16" else ""
            raise ExportError(
                f"state {name!r} has an unknown number type",
                found=f"{kind}{why}",
                expected=", ".join(KINDS),
            )
        if kind != "float32":
            _check_state(states[name], kind, spec, sessions)


def _check_state(state: StateSpec, kind: str, spec: StepSpec, sessions: int) -> None:
    if state.dtype != "float32":
        raise ExportError(
            f"only states in float32 are stored in fewer bits, and {state.name!r} is not",
            found=state.dtype,
            remedy="leave it out, or export the model with this state in float32",
        )
    if kind == "float16":
        return
    if len(state.shape) < 2:
        raise ExportError(
            f"state {state.name!r} has no rows that could share a scale",
            found=f"shape {list(state.shape)}",
            expected="a leading axis and at least one more",
            remedy="store it as float16",
        )
    gate = next((g for g in spec.gates if g.name == state.gate and g.kind == "hard"), None)
    if gate is None or gate.granularity == "step":
        return
    # A row holds no two heads or slots where these have an axis other than its own.
    extent = next((e for e in reversed(gate.shape) if e > 1), 1)
    (row,) = shared_axes(state.shape, "int8", sessions)
    whole_rows = gate.granularity != "channel" and extent in (1, *state.shape[1:row])
    if kind == "int8-tensor" or not whole_rows:
        by_row = ", or as int8 with a scale for each row" if kind == "int8-tensor" else ""
        raise ExportError(
            f"a scale of state {state.name!r} would be shared by open and closed {gate.granularity}"
            "s of its gate, and a closed one must keep its bytes",
            found=f"{kind}, gate {list(gate.shape)}, state {list(state.shape)}",
            expected="a gate whose elements guard whole rows",
            remedy=f"store it as float16{by_row}",
        )


def _parts(
    state: StateSpec, kind: str, axes: tuple[int, ...], error_feedback: bool
) -> list[StateSpec]:
    """What is stored instead of a state; the first has its name."""
    layout = stored_layout(state, kind, error_feedback)
    forms = [(state.name, state.shape, "float16" if kind == "float16" else "int8", layout)]
    if kind != "float16":
        label = f"of {state.name}"
        shape = tuple(1 if a in axes else extent for a, extent in enumerate(state.shape))
        forms.append((scale_name(state.name), shape, "float32", label))
        if error_feedback:
            forms.append((residual_name(state.name), state.shape, "int8", label))
    parts = [StateSpec(n, s, dtype, gate=state.gate, layout=text) for n, s, dtype, text in forms]
    size = sum(part.bytes for part in parts)
    if size >= state.bytes:
        raise ExportError(
            f"state {state.name!r} would not become smaller",
            found=f"{kind} needs {size:,} bytes with its scales, and float32 {state.bytes:,}",
            expected="rows of at least two numbers, three with error feedback",
            remedy=f"--state-storage {state.name}=float16, or leave it in float32",
        )
    parts[0] = msgspec.structs.replace(parts[0], next_name=state.next_name)
    # One opening replaces the same share of every part.
    return [
        msgspec.structs.replace(part, write_bytes=-(-part.bytes * state.write_bytes // state.bytes))
        for part in parts
    ]


class _StoreState(ir.passes.InPlacePass):
    """Put a state's stored parts between the graph's boundary and its computation.

    One scale serves along the axes ``shared``. Guarantees that a row which the step does not change
    keeps its stored bytes.
    """

    def __init__(
        self, state: StateSpec, parts: list[StateSpec], shared: tuple[int, ...], opset: int
    ) -> None:
        self._state, self._parts, self._shared, self._opset = state, parts, shared, opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, state = model.graph, self._state
        before = next(v for v in graph.inputs if v.name == state.name)
        after = next(v for v in graph.outputs if v.name == state.next_name)
        places = graph.inputs.index(before), graph.outputs.index(after)
        # The computation uses other names, so that the boundary can have these.
        before.name, after.name = f"{state.name}/value", f"{state.next_name}/value"
        stored = [_boundary(part.name, part) for part in self._parts]
        write = Writer(graph, state.name)
        if stored[0].dtype == ir.DataType.FLOAT16:
            value = write("Cast", stored[0], to=ir.DataType.FLOAT)
            following = [write("Cast", after, to=ir.DataType.FLOAT16)]
        else:
            value, following = self._int8(write, stored, after)
        before.replace_all_uses_with(value)
        for result, part in zip(following, self._parts, strict=True):
            boundary = _boundary(part.next_name, part)
            result.name, result.type, result.shape = boundary.name, boundary.type, boundary.shape
        for values, at, others in (
            (graph.inputs, places[0], stored),
            (graph.outputs, places[1], following),
        ):
            replace_all(values, [*values[:at], *others, *values[at + 1 :]])
        graph.sort()
        return ir.passes.PassResult(model, True)

    def _int8(
        self, write: Writer, stored: list[ir.Value], after: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The float value of what is stored, and what is stored of the next one."""
        whole, scale, *residuals = stored
        axes = write.constant(self._shared, np.int64)

        def number(value: float) -> ir.Value:
            return write.constant(value, np.float32)

        def reduced(operator: str, value: ir.Value) -> ir.Value:
            if operator == "ReduceSum" or self._opset >= 18:
                return write(operator, value, axes, keepdims=1)
            return write(operator, value, keepdims=1, axes=list(self._shared))

        def as_float(value: ir.Value) -> ir.Value:
            return write("Cast", value, to=ir.DataType.FLOAT)

        def as_int8(value: ir.Value) -> ir.Value:
            return write("Cast", value, to=ir.DataType.INT8)

        zero, old = number(0), as_float(whole)
        old_residuals = [as_float(each) for each in residuals]
        steps = old
        for each in old_residuals:
            steps = write("Add", steps, write("Mul", each, number(1 / FINER)))
        value = write("Mul", steps, scale)
        # A row that did not change keeps its bytes, whatever quantising it anew would give.
        equal = reduced("ReduceMin", as_float(write("Equal", after, value)))
        same = write("Cast", equal, to=ir.DataType.BOOL)
        largest = reduced("ReduceMax", write("Abs", after))
        new_scale = write("Div", largest, number(LEVELS))
        # A row of zeros has a scale of zero, and must not be divided by it.
        divisor = write("Where", write("Greater", new_scale, zero), new_scale, number(1))
        # int8 has no NaN; the scale must show the runtime one, and a maximum may drop it.
        poison = reduced("ReduceSum", write("Mul", after, zero))
        new_scale = write("Add", new_scale, poison)
        steps = write("Div", after, divisor)
        rounded = write("Round", steps)
        following = [
            as_int8(write("Where", same, old, rounded)),
            write("Where", same, scale, new_scale),
        ]
        for each in old_residuals:  # what rounding left over, in finer levels
            rest = write("Round", write("Mul", write("Sub", steps, rounded), number(FINER)))
            following.append(as_int8(write("Where", same, each, rest)))
        return value, following


def _boundary(name: str, part: StateSpec) -> ir.Value:
    kind = ir.DataType(dtype_named(part.dtype).onnx)
    return ir.val(name, dtype=kind, shape=part.shape)
