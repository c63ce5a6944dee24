"""States stored in float16 or int8 between steps: surgery on a traced step.

Everything between the stored bytes and the stored bytes stays float32. Where a next state equals
the state that the step was given, row by row, the old bytes are handed on: a closed gate, or the
closed head of an open one, leaves them alone. `stategate.contract.stored` has the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
from stategate.export.passes.graph import check_graph, every_node, opset_of

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

    Args:
        graph: One step with the signature ``spec``; left as it is.
        spec: What it takes and gives.
        storage: One of `KINDS` by state name; states not named stay as they are.
        error_feedback: Whether int8 states keep what rounding left over.
        sessions: How many one step serves, each with scales of its own.

    Returns:
        The new graph and its signature; the parts of a state have its gate.

    Raises:
        ExportError: A state is not there, is no float32, or cannot be stored so without touching
            bytes that a closed element of its gate guards.
        GraphError: The result breaks a rule.
    """
    _check(graph, spec, storage, error_feedback, sessions)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]  # names change their meaning below
    states: list[StateSpec] = []
    for state in spec.states:
        kind = storage.get(state.name, "float32")
        if kind == "float32":
            states.append(state)
            continue
        axes = shared_axes(state.shape, kind, sessions)
        parts = _parts(state, kind, axes, error_feedback)
        _check_smaller(state, kind, parts)
        _Surgery(model, state, parts).store(axes)
        states += parts
    stored = msgspec.structs.replace(spec, states=tuple(states))
    check_graph(model, stored, branch_free=False)
    return model, stored


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
            whole, scale, left = quantised(value, kind, error_feedback, candidate.sessions)
            initial |= {name: whole, scale_name(name): scale}
            initial |= {} if left is None else {residual_name(name): left}
        else:
            initial[name] = value.astype(kind if kind != "float32" else value.dtype)
    told = ", ".join(f"{name} {kind}" for name, kind in storage.items())
    return replace(
        candidate,
        spec=spec,
        graph=model.SerializeToString(deterministic=True),
        initial=initial,
        float_sizes=candidate.sizes,
        metadata=candidate.metadata
        | {"state_storage": told + (" with error feedback" if error_feedback else "")},
        plan=msgspec.structs.replace(
            candidate.plan, state_storage=dict(storage), error_feedback=error_feedback
        ),
        chunk=None,
        chunk_steps=0,
    )


def _check(
    graph: onnx.ModelProto, spec: StepSpec, storage: Storage, error_feedback: bool, sessions: int
) -> None:
    if opset_of(graph) < _OPSET and any(kind.startswith("int8") for kind in storage.values()):
        raise ExportError(
            "states of this graph cannot be stored in int8",
            found=f"opset {opset_of(graph)}",
            expected=f"{_OPSET} or newer",
            remedy="store them as float16, convert the file with onnx.version_converter, or export "
            "it anew",
        )
    states = {state.name: state for state in spec.states}
    for name, kind in storage.items():
        if name not in states:
            raise ExportError(
                "there is no such state to store", found=name, expected=", ".join(states)
            )
        if kind not in KINDS:
            why = "NumPy, which holds the states, has no bfloat16" if kind == "bfloat16" else None
            raise ExportError(
                f"state {name!r} cannot be stored as {kind}",
                found=why,
                expected=", ".join(KINDS),
            )
        if kind != "float32":
            _check_state(states[name], kind, spec, sessions)
    if error_feedback and not any(kind.startswith("int8") for kind in storage.values()):
        raise ExportError(
            "error feedback has nothing to feed back",
            found=", ".join(f"{name} {kind}" for name, kind in storage.items()) or "no storage",
            expected="a state in int8",
        )


def _check_state(state: StateSpec, kind: str, spec: StepSpec, sessions: int) -> None:
    if state.dtype != "float32":
        raise ExportError(
            f"state {state.name!r} is not float32 and keeps its own storage",
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
    before = state.shape[1:row]
    whole_rows = gate.granularity != "channel" and extent in (1, *before)
    if kind == "int8-tensor" or not whole_rows:
        raise ExportError(
            f"a scale of state {state.name!r} would be shared by open and closed {gate.granularity}"
            "s of its gate, and a closed one must keep its bytes",
            found=f"{kind}, gate {list(gate.shape)}, state {list(state.shape)}",
            expected="a gate whose elements guard whole rows",
            remedy="store it as float16"
            + (", or as int8 with a scale for each row" if kind == "int8-tensor" else ""),
        )


def _check_smaller(state: StateSpec, kind: str, parts: list[StateSpec]) -> None:
    needed = sum(part.bytes for part in parts)
    if needed >= state.bytes:
        raise ExportError(
            f"state {state.name!r} would not become smaller",
            found=f"{kind} needs {needed:,} bytes with its scales, and float32 {state.bytes:,}",
            expected="rows of at least two numbers, three with error feedback",
            remedy=f"--state-storage {state.name}=float16, or leave it in float32",
        )


def _parts(
    state: StateSpec, kind: str, axes: tuple[int, ...], error_feedback: bool
) -> list[StateSpec]:
    """What is stored instead of a state; the first has its name."""
    layout = stored_layout(state, kind, error_feedback)
    forms = [(state.name, state.shape, "float16" if kind == "float16" else "int8", layout)]
    if kind != "float16":
        of = f"of {state.name}"
        shape = tuple(1 if a in axes else extent for a, extent in enumerate(state.shape))
        forms.append((scale_name(state.name), shape, "float32", of))
        if error_feedback:
            forms.append((residual_name(state.name), state.shape, "int8", of))
    parts = [
        StateSpec(name, shape, dtype, gate=state.gate, layout=text)
        for name, shape, dtype, text in forms
    ]
    parts[0] = msgspec.structs.replace(parts[0], next_name=state.next_name)
    # One opening replaces the same share of every part.
    return [
        msgspec.structs.replace(part, write_bytes=-(-part.bytes * state.write_bytes // state.bytes))
        for part in parts
    ]


class _Surgery:
    """Puts a state's storage between the graph's boundary and its computation."""

    def __init__(self, model: onnx.ModelProto, state: StateSpec, parts: list[StateSpec]) -> None:
        self._graph, self._state, self._parts = model.graph, state, parts
        self._opset = opset_of(model)
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._value = f"{state.name}/value"
        self._next = f"{state.next_name}/value"

    def store(self, shared: tuple[int, ...]) -> None:
        """Replace the state by its parts; one scale serves along the axes ``shared``."""
        self._set_free({self._state.name: self._value, self._state.next_name: self._next})
        if self._parts[0].dtype == "float16":
            to = TensorProto.FLOAT16
            self._add(self._before, "Cast", [self._state.name], self._value, to=TensorProto.FLOAT)
            self._add(self._after, "Cast", [self._next], self._state.next_name, to=to)
        else:
            self._int8(shared)
        nodes = [*self._before, *self._graph.node, *self._after]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        for values, names in (
            (self._graph.input, [p.name for p in self._parts]),
            (self._graph.output, [p.next_name for p in self._parts]),
        ):
            at = next(i for i, v in enumerate(values) if v.name == names[0])
            kept = list(values)
            kept[at : at + 1] = [
                helper.make_tensor_value_info(name, dtype_named(p.dtype).onnx, p.shape)
                for name, p in zip(names, self._parts, strict=True)
            ]
            del values[:]
            values.extend(kept)

    def _set_free(self, renamed: dict[str, str]) -> None:
        """Have the computation use other names, so that the boundary can have these."""
        for node in every_node(self._graph):
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = renamed.get(name, name)

    @staticmethod
    def _add(
        nodes: list[onnx.NodeProto], op: str, inputs: list[str], output: str, **how: Any
    ) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **how))
        return output

    def _constant(self, name: str, value: np.ndarray) -> str:
        name = f"{self._state.name}/{name}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _int8(self, shared: tuple[int, ...]) -> None:
        name, parts = self._state.name, self._parts

        def before(op: str, inputs: list[str], output: str, **how: int) -> str:
            return self._add(self._before, op, inputs, f"{name}/{output}", **how)

        def after(op: str, inputs: list[str], output: str, **how: Any) -> str:
            return self._add(self._after, op, inputs, f"{name}/{output}", **how)

        def number(label: str, value: float) -> str:
            return self._constant(label, np.array(value, dtype=np.float32))

        axes = self._constant("axes", np.array(shared, dtype=np.int64))

        def reduced(op: str, value: str, output: str) -> str:
            if op == "ReduceSum" or self._opset >= 18:
                return after(op, [value, axes], output, keepdims=1)
            return after(op, [value], output, keepdims=1, axes=list(shared))

        zero, one, levels = number("zero", 0), number("one", 1), number("levels", LEVELS)
        scale = parts[1].name
        old = before("Cast", [name], "whole", to=TensorProto.FLOAT)
        steps, old_left = old, ""
        if len(parts) > 2:
            old_left = before("Cast", [parts[2].name], "left", to=TensorProto.FLOAT)
            part = before("Mul", [old_left, number("finer", 1 / FINER)], "part")
            steps = before("Add", [old, part], "steps")
        before("Mul", [steps, scale], "value")
        # A row that did not change keeps its bytes, whatever quantising it anew would give.
        equal = after("Equal", [self._next, self._value], "equal")
        equal = after("Cast", [equal], "equal_number", to=TensorProto.FLOAT)
        equal = reduced("ReduceMin", equal, "equal_row")
        same = after("Cast", [equal], "same", to=TensorProto.BOOL)
        largest = after("Abs", [self._next], "magnitude")
        largest = reduced("ReduceMax", largest, "largest")
        # int8 has no NaN; the scale must show the runtime one, and a maximum may drop it.
        poison = after("Mul", [self._next, zero], "poison")
        poison = reduced("ReduceSum", poison, "poison_row")
        fresh = after("Div", [largest, levels], "fresh_scale")
        positive = after("Greater", [fresh, zero], "positive")
        divisor = after("Where", [positive, fresh, one], "divisor")
        fresh = after("Add", [fresh, poison], "fresh_scale_checked")
        steps = after("Div", [self._next, divisor], "fresh_steps")
        whole = after("Round", [steps], "fresh_whole")
        kept = after("Where", [same, old, whole], "kept_whole")
        self._add(self._after, "Cast", [kept], parts[0].next_name, to=TensorProto.INT8)
        self._add(self._after, "Where", [same, scale, fresh], parts[1].next_name)
        if len(parts) > 2:
            left = after("Sub", [steps, whole], "fresh_part")
            left = after("Mul", [left, number("finer_levels", FINER)], "fresh_left")
            left = after("Round", [left], "fresh_left_whole")
            left = after("Where", [same, old_left, left], "kept_left")
            self._add(self._after, "Cast", [left], parts[2].next_name, to=TensorProto.INT8)
