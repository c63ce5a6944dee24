"""The generated half of a native engine's C: the public header and the tables of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stategate.contract import (
    ConstantSpec,
    GateSpec,
    ObservationContract,
    StateSpec,
    StepSpec,
    TensorSpec,
    sha256,
)
from stategate.contract.c_library import ABI, tag
from stategate.export.c.meaning import declarations
from stategate.export.c.names import filled, members
from stategate.export.c.view import pointer

_C_TYPES = {"float32": "float", "float64": "double", "bool": "bool", "float16": "_Float16"}
_KINDS = {f"float{bits}": f"STATEGATE_FLOAT{bits}" for bits in (16, 32, 64)}
_TYPES = {**_KINDS, "bool": "STATEGATE_BOOL"}

# What an initial state is called among the weights, which have names of their own.
INITIAL = " at the start"
STACK_BYTES = 128 * 1024  # beyond this a small thread may have no room


@dataclass(frozen=True, slots=True)
class Function:
    """One generated function."""

    prototype: str  # its C declaration
    takes: tuple[str, ...]  # tensors in the order of its arguments, weights included
    gives: tuple[str, ...]  # tensors that it fills, which follow


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    member: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def declaration(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        return f"    STATEGATE_ALIGNED {c_type(self.dtype)} {self.member}[{self.size}];" + (
            f" /* {shape} */"
        )


def c_type(dtype: str) -> str:
    """The C type of a dtype."""
    return _C_TYPES.get(dtype, f"{dtype}_t")


def _fields(spec: StepSpec) -> dict[str, list[_Field]]:
    gates = [TensorSpec(gate.name, gate.shape) for gate in spec.gates]
    kinds: dict[str, Sequence[TensorSpec | ConstantSpec | StateSpec]] = {
        "inputs": spec.inputs,
        "constants": spec.fixed_inputs,
        "outputs": (*spec.outputs, *gates),
        "states": spec.states,
    }
    named = {kind: members(t.name for t in tensors) for kind, tensors in kinds.items()}
    return {
        kind: [_Field(t.name, named[kind][t.name], t.shape, t.dtype) for t in tensors]
        for kind, tensors in kinds.items()
    }


def _hard(spec: StepSpec) -> list[GateSpec]:
    return [gate for gate in spec.gates if gate.kind == "hard"]


def interface(
    spec: StepSpec,
    graph_sha256: str,
    observation: ObservationContract | None = None,
    *,
    initial_states: int = 0,
    may_fail: bool = False,
) -> str:
    """The public header: what a C or C++ program includes."""
    fields = _fields(spec)
    hard = _hard(spec)
    guarded = {gate.name for gate in hard}
    ungated = any(state.gate not in guarded for state in spec.states)
    structs = "\n\n".join(
        f"typedef struct {{\n{_members(listed)}\n}} stategate_{kind};"
        for kind, listed in fields.items()
    )
    macros = {
        "ABI": ABI,
        "TAG": f'"{tag(ABI, graph_sha256).decode()}"',
        "STATE_BYTES": spec.state_bytes,
        "GATES": len(hard),
        "OPENINGS": max(1, len(hard)),
        "UNGATED": int(ungated),
        "CONSTANTS": len(spec.fixed_inputs),
        "FIXED_GATES": sum(gate.threshold_input is None for gate in hard),
        "INITIAL_STATES": initial_states,
        "MAY_FAIL": int(may_fail),
        "SAFE_OUTPUTS": sum(tensor.safe_array() is not None for tensor in spec.outputs),
        "ROWS": max((s.rows for s in spec.states if s.cursor is not None), default=0),
        "KEPT_BYTES": _kept_bytes(spec),
        "ROW_BYTES": sum(s.next_value.nbytes for s in spec.states if s.cursor is not None),
        "FOLD_BYTES": sum(s.bytes for s in spec.states if s.folds is not None),
        "TAKES": len(spec.graph_inputs()),
        "GIVES": len(spec.graph_outputs()),
    }
    defines = "\n".join(
        f"#define STATEGATE_{name} {value}{'u' if isinstance(value, int) else ''}"
        for name, value in macros.items()
    )
    header = filled(
        "stategate.h.in", DEFINES=defines, STRUCTS=structs, MEANING=declarations(observation)
    )
    return header.replace("@LAYOUT@", f"0x{sha256(header.encode())[:16]}")


def _kept_bytes(spec: StepSpec) -> int:
    """Bytes of what every step replaces, for each step that can be taken back."""
    rows = max((s.rows for s in spec.states if s.cursor is not None), default=0)
    hard = {gate.name for gate in _hard(spec)}
    return rows * sum(s.bytes for s in spec.states if s.gate not in hard)


def model_source(
    spec: StepSpec,
    functions: Mapping[str, Function],
    weights: Mapping[str, int],
    payload: Mapping[str, tuple[str, int]],
    graph_sha256: str,
    *,
    may_fail: bool,
) -> str:
    """``model.c``: the tables, and the step that calls the generated parts."""
    at = {name: f"in[{i}]" for i, name in enumerate(spec.graph_inputs())}
    at |= {name: f"out[{i}]" for i, name in enumerate(spec.graph_outputs())}
    locals_ = []
    payload_bytes = sum(np.dtype(dtype).itemsize * size for dtype, size in payload.values())
    place = "STATEGATE_TEMPORARY " if payload_bytes > STACK_BYTES else ""
    for i, (name, (dtype, elements)) in enumerate(payload.items()):
        if name not in at:
            at[name] = f"(void *)p{i}"
            locals_.append(
                f"    {place}STATEGATE_ALIGNED {c_type(dtype)} p{i}[{max(1, elements)}];"
            )
    for name, offset in weights.items():
        at[name] = f"(void *)(uintptr_t)({pointer('stategate_weights', offset)})"

    states = {
        s.next_name: f"{s.next_value.nbytes}, {_KINDS[s.dtype]}"
        for s in spec.states
        if s.dtype in _KINDS
    }

    def call(function: str, indent: str) -> list[str]:
        part = functions[function]
        arguments = ", ".join(at[name] for name in (*part.takes, *part.gives))
        # Subnormal numbers would make every later step slow.
        flushes = [f"stategate_flush({at[n]}, {states[n]});" for n in part.gives if n in states]
        return [f"{indent}{line}" for line in (f"stategate_{function}({arguments});", *flushes)]

    finite = " && ".join(
        f"stategate_finite(in[{i}], {t.nbytes}, {_KINDS[t.dtype]})"
        for i, t in enumerate(spec.inputs)
        if t.dtype in _KINDS
    )
    refusal = [f"    if (!({finite})) {{", "        return 1;", "    }"] if finite else []
    body = [*locals_, *refusal]
    body += call("read", "    ")
    for i, gate in enumerate(spec.gates):
        if f"write{i}" in functions:
            elements = int(np.prod(gate.shape, dtype=np.int64))
            is_open = (
                f"stategate_is_open({at[gate.name]}, {elements}, {at[str(gate.threshold_input)]})"
            )
            body += [f"    if ({is_open}) {{", *call(f"write{i}", "        "), "    }"]
    prototypes = "\n".join(function.prototype for function in functions.values())
    if may_fail:  # what is no number in an output, a gate or a state is a fault for every session
        prototypes += "\nSTATEGATE_THREAD uint32_t stategate_outside;"
        sizes = [t.nbytes for t in spec.graph_outputs().values()]
        spoils = [f"        (void)memset(out[{i}], 0xFF, {size});" for i, size in enumerate(sizes)]
        body = ["    stategate_outside = 0u;", *body]
        body += ["    if (stategate_outside != 0u) {", *spoils, "    }"]
    tables = "\n".join(_tables(spec, weights))
    return filled("model.c.in", PROTOTYPES=prototypes, BODY="\n".join(body), TABLES=tables)


def _members(listed: Sequence[_Field]) -> str:
    return "\n".join(f.declaration for f in listed) or "    char none;"


def _tables(spec: StepSpec, weights: Mapping[str, int]) -> Iterable[str]:
    initial = {
        s.name: pointer("stategate_weights", weights[s.name + INITIAL])
        for s in spec.states
        if s.name + INITIAL in weights
    }
    for i, (tensor, array) in enumerate((t, t.safe_array()) for t in spec.outputs):
        if array is not None:
            numbers = ", ".join(_literal(value, tensor.dtype) for value in array.ravel().tolist())
            yield f"static const {c_type(tensor.dtype)} safe{i}[] = {{{numbers}}};\n"
            initial[tensor.name] = f"safe{i}"
    hard = _hard(spec)
    group = {gate.name: i for i, gate in enumerate(hard)}
    groups = {s.name: group.get(s.gate or "", len(hard)) for s in spec.states}
    following = {s.name: s.next_value.nbytes for s in spec.states}
    fields = _fields(spec)
    for kind, listed in fields.items():
        rows = [
            f"    {{offsetof(stategate_{kind}, {f.member}), "
            f"sizeof(((stategate_{kind} *)0)->{f.member}), "
            f"{_TYPES.get(f.dtype, 'STATEGATE_OTHER')}, {groups.get(f.name, 0)}, "
            f"{initial.get(f.name, 'NULL')}, {following.get(f.name, 0)}}},"
            for f in listed
        ]
        yield _array("stategate_tensor", kind, rows, "{0, 0, STATEGATE_OTHER, 0, NULL, 0}")
    gates = []
    member = {f.name: f.member for kind in ("outputs", "constants") for f in fields[kind]}
    appending = {s.gate for s in spec.states if s.cursor is not None}
    for gate in hard:
        name = gate.threshold_input
        offset = f"(ptrdiff_t)offsetof(stategate_constants, {member[name]})" if name else "-1"
        elements = int(np.prod(gate.shape, dtype=np.int64))
        most = 1 if gate.granularity == "step" else elements
        gates.append(
            f"    {{offsetof(stategate_outputs, {member[gate.name]}), {elements}, {most}, "
            f"{'true' if gate.name in appending else 'false'}, "
            f"{_literal(gate.threshold)}, {offset}}},"
        )
    yield _array("stategate_gate", "gates", gates, "{0, 0, 0, false, 0.0f, -1}")
    values = [
        f"    .{f.member} = {{{', '.join([_literal(c.value, c.dtype)] * f.size)}}},"
        for c, f in zip(spec.fixed_inputs, fields["constants"], strict=True)
    ]
    values = values or ["    .none = 0,"]
    yield "static const stategate_constants constant_values = {\n" + "\n".join(values) + "\n};\n"
    cursor = next((s.cursor for s in spec.states if s.cursor is not None), None)
    at = f"&states[{[s.name for s in spec.states].index(cursor)}]" if cursor else "NULL"
    counts = ", ".join(str(len(listed)) for listed in fields.values())
    yield (
        "const stategate_model stategate_this_model = {\n"
        f"    inputs, constants, outputs, states, gates, {counts}, {len(hard)}, &constant_values, "
        f"{at}\n"
        "};"
    )


def _array(kind: str, name: str, rows: list[str], empty: str) -> str:
    body = "\n".join(rows) or f"    {empty}"
    return f"static const {kind} {name}[] = {{\n{body}\n}};\n"


def _literal(value: object, dtype: str = "float32") -> str:
    if isinstance(value, bool | int):
        return str(int(value))
    if dtype == "float64":
        return float(str(value)).hex()
    return float(np.float32(str(value))).hex() + "f"
