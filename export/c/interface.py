"""The generated half of a native engine's C: the public header and the tables of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stategate.contract import ConstantSpec, GateSpec, StateSpec, StepSpec, TensorSpec, sha256
from stategate.contract.c_library import ABI, tag
from stategate.export.c.names import members

_C_TYPES = {"float32": "float", "float64": "double", "bool": "bool", "float16": "_Float16"}
_KINDS = {f"float{bits}": f"STATEGATE_FLOAT{bits}" for bits in (16, 32, 64)}
_TYPES = {**_KINDS, "bool": "STATEGATE_BOOL"}

# What an initial state is called among the weights, which have names of their own.
INITIAL = " at the start"
STACK_BYTES = 128 * 1024  # beyond this a small thread may have no room


@dataclass(frozen=True, slots=True)
class Function:
    """One generated function.

    Attributes:
        prototype: Its C declaration.
        takes: Tensors in the order of its arguments, weights included.
        gives: Tensors that it fills, which follow.
    """

    prototype: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


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


def interface(spec: StepSpec, graph_sha256: str) -> str:
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
        "UNGATED": int(ungated),
        "TAKES": len(spec.graph_inputs()),
        "GIVES": len(spec.graph_outputs()),
    }
    defines = "\n".join(f"#define STATEGATE_{name} {value}" for name, value in macros.items())
    header = _HEADER.replace("@DEFINES@", defines).replace("@STRUCTS@", structs)
    return header.replace("@LAYOUT@", f"0x{sha256(header.encode())[:16]}")


def model_source(
    spec: StepSpec,
    functions: Mapping[str, Function],
    weights: Mapping[str, int],
    payload: Mapping[str, tuple[str, int]],
    graph_sha256: str,
) -> str:
    """``model.c``: the tables, and the step that calls the generated parts.

    Args:
        spec: Signature of the step.
        functions: ``read``, and ``write<i>`` for gate ``i``, by name.
        weights: Offset of each weight in the binary.
        payload: Dtype and elements of each tensor that a write takes from the read.
        graph_sha256: Digest of the graph's file.
    """
    at = {name: f"in[{i}]" for i, name in enumerate(spec.graph_inputs())}
    at |= {name: f"out[{i}]" for i, name in enumerate(spec.graph_outputs())}
    locals_ = []
    handed = sum(np.dtype(dtype).itemsize * elements for dtype, elements in payload.values())
    place = "STATEGATE_TEMPORARY " if handed > STACK_BYTES else ""
    for i, (name, (dtype, elements)) in enumerate(payload.items()):
        if name not in at:
            at[name] = f"(void *)p{i}"
            locals_.append(
                f"    {place}STATEGATE_ALIGNED {c_type(dtype)} p{i}[{max(1, elements)}];"
            )
    for name, offset in weights.items():
        at[name] = f"(void *)(uintptr_t)(stategate_weights + {offset})"

    states = {
        s.next_name: f"{s.bytes}, {_KINDS[s.dtype]}" for s in spec.states if s.dtype in _KINDS
    }

    def call(function: str, indent: str) -> list[str]:
        taken = functions[function]
        arguments = ", ".join(at[name] for name in (*taken.takes, *taken.gives))
        flushed = [f"stategate_flush({at[n]}, {states[n]});" for n in taken.gives if n in states]
        return [f"{indent}{line}" for line in (f"stategate_{function}({arguments});", *flushed)]

    finite = " && ".join(
        f"stategate_finite(in[{i}], {t.nbytes}, {_KINDS[t.dtype]})"
        for i, t in enumerate(spec.inputs)
        if t.dtype in _KINDS
    )
    refusal = [f"    if (!({finite})) {{", "        return 1;", "    }"] if finite else []
    body = [*locals_, *refusal, "    const unsigned mode = stategate_enter();"]
    body += call("read", "    ")
    for i, gate in enumerate(spec.gates):
        if f"write{i}" in functions:
            elements = int(np.prod(gate.shape, dtype=np.int64))
            asked = f"is_open({at[gate.name]}, {elements}, {at[str(gate.threshold_input)]})"
            body += [f"    if ({asked}) {{", *call(f"write{i}", "        "), "    }"]
    body.append("    stategate_leave(mode);")
    prototypes = "\n".join(function.prototype for function in functions.values())
    return _MODEL.format(
        prototypes=prototypes, body="\n".join(body), tables="\n".join(_tables(spec, weights))
    )


def _members(listed: Sequence[_Field]) -> str:
    return "\n".join(f.declaration for f in listed) or "    char none;"


def _tables(spec: StepSpec, weights: Mapping[str, int]) -> Iterable[str]:
    initial = {
        s.name: f"stategate_weights + {weights[s.name + INITIAL]}"
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
    fields = _fields(spec)
    for kind, listed in fields.items():
        rows = [
            f"    {{offsetof(stategate_{kind}, {f.member}), "
            f"sizeof(((stategate_{kind} *)0)->{f.member}), "
            f"{_TYPES.get(f.dtype, 'STATEGATE_OTHER')}, {groups.get(f.name, 0)}, "
            f"{initial.get(f.name, 'NULL')}}},"
            for f in listed
        ]
        yield _array("stategate_tensor", kind, rows, "{0, 0, STATEGATE_OTHER, 0, NULL}")
    gates = []
    member = {f.name: f.member for kind in ("outputs", "constants") for f in fields[kind]}
    for gate in hard:
        name = gate.threshold_input
        offset = f"(ptrdiff_t)offsetof(stategate_constants, {member[name]})" if name else "-1"
        whole = "true" if gate.granularity == "step" else "false"
        elements = int(np.prod(gate.shape, dtype=np.int64))
        gates.append(
            f"    {{offsetof(stategate_outputs, {member[gate.name]}), {elements}, {whole}, "
            f"{_literal(gate.threshold)}, {offset}}},"
        )
    yield _array("stategate_gate", "gates", gates, "{0, 0, false, 0.0f, -1}")
    values = [
        f"    .{f.member} = {{{', '.join([_literal(c.value, c.dtype)] * f.size)}}},"
        for c, f in zip(spec.fixed_inputs, fields["constants"], strict=True)
    ]
    values = values or ["    .none = 0,"]
    yield "static const stategate_constants constant_values = {\n" + "\n".join(values) + "\n};\n"
    counts = ", ".join(str(len(listed)) for listed in fields.values())
    yield (
        "const stategate_model stategate_this_model = {\n"
        f"    inputs, constants, outputs, states, gates, {counts}, {len(hard)}, &constant_values\n"
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


_MODEL = """\
/* Generated: the step of one model, and where its tensors lie. */
#include <stddef.h>

#include "stategate.h"
#include "stategate_math.h"
#include "stategate_model.h"

extern const unsigned char stategate_weights[] __attribute__((visibility("hidden")));
__asm__(
    ".section .rodata\\n"
    ".balign 64\\n"
    ".global stategate_weights\\n"
    ".hidden stategate_weights\\n"
    "stategate_weights:\\n"
    ".incbin \\"weights.bin\\"\\n"
    ".byte 0\\n"
    ".previous\\n");

{prototypes}

static inline __attribute__((unused)) bool is_open(
    const float *gate, size_t elements, const float *threshold)
{{
    for (size_t i = 0; i < elements; ++i) {{
        if (gate[i] > *threshold) {{
            return true;
        }}
    }}
    return false;
}}

int stategate_compute(void *const *in, void *const *out)
{{
{body}
    return 0;
}}

{tables}
"""

_HEADER = """\
/* One step of a model with a memory of constant size; made by stategate, see docs/guides/native.md.
 *
 * All memory is the caller's: a stategate_session may be static, on the stack or anywhere else.
 * Nothing is allocated. Not thread-safe: one session is one stream.
 */
#ifndef STATEGATE_H
#define STATEGATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATEGATE_ALIGNED __attribute__((aligned(64)))
#define STATEGATE_API __attribute__((visibility("default")))

@DEFINES@
/* Of all that is declared here: whether a program and a library mean the same structs. */
#define STATEGATE_LAYOUT UINT64_C(@LAYOUT@)

#ifdef __cplusplus
extern "C" {
#endif

@STRUCTS@

/* steps == writes + quiet_steps + suppressed_writes. Integers that only grow. */
typedef struct {
    uint64_t steps, writes, quiet_steps, suppressed_writes, ungated_writes, faults, resets;
    uint64_t openings[STATEGATE_GATES + 1]; /* of each hard gate, in its order */
} stategate_counters;

typedef struct {
    uint64_t ready; /* set by init; first, so that every bundle's code finds it */
    stategate_states bank[2];
    stategate_constants constants;
    stategate_counters counters;
    uint64_t parity; /* bit i: which bank of the states of gate i is live */
    /* The budget hook: asked before each step whether it may write; NULL for always. */
    bool (*may_write)(void *user);
    void *user;
} stategate_session;

/* Below zero nothing was done, and nothing counted but the faults of a step. */
typedef enum {
    STATEGATE_OK = 0,         /* of all but a step */
    STATEGATE_QUIET = 0,      /* every gate stayed closed */
    STATEGATE_WROTE = 1,      /* a gate opened and its states changed */
    STATEGATE_HELD = 2,       /* a gate opened and the budget hook had said no */
    STATEGATE_BAD_INPUT = -1, /* NaN or infinity in an input: nothing was done or counted */
    STATEGATE_FAULT = -2,     /* NaN or infinity in a gate or next state: the write was refused */
    STATEGATE_BAD_OUTPUT = -3, /* NaN or infinity in an output: no answer, the write was refused */
    STATEGATE_NO_POINTER = -4, /* NULL where a session, inputs, outputs or a buffer must be */
    STATEGATE_UNALIGNED = -5, /* a pointer that is not aligned as its type is */
    STATEGATE_NOT_READY = -6, /* the session was not initialised by this library */
    STATEGATE_OTHER_MODEL = -7, /* program or save belong to another bundle than the library */
    STATEGATE_DAMAGED = -8, /* a save of the wrong length, or altered since */
    STATEGATE_IMPOSSIBLE = -9 /* a save with NaN, infinity, or counters that contradict */
} stategate_result;

/* Bytes of one save. */
#define STATEGATE_SAVED_BYTES \\
    (sizeof STATEGATE_TAG + sizeof(stategate_counters) + STATEGATE_STATE_BYTES + 4)

/* Initial states, thresholds of the manifest, counters at zero, no budget hook. Refused where the
 * library was not made with this header; every other call then answers STATEGATE_NOT_READY. */
STATEGATE_API stategate_result stategate_init_as(stategate_session *session, uint64_t layout);

static inline __attribute__((unused)) stategate_result stategate_init(stategate_session *session)
{
    return stategate_init_as(session, STATEGATE_LAYOUT);
}

/* Below zero the outputs hold no answer: do not act on them. */
STATEGATE_API stategate_result stategate_step(
    stategate_session *session, const stategate_inputs *inputs, stategate_outputs *outputs);

/* Initial states; counters go on. */
STATEGATE_API stategate_result stategate_reset(stategate_session *session);

/* Bytes of one bank of all states: what the model remembers. */
STATEGATE_API size_t stategate_state_bytes(void);

/* Counters and states into a buffer; the bytes used, or 0 where it is too small, or the session not
 * ready. */
STATEGATE_API size_t stategate_save(
    const stategate_session *session, void *buffer, size_t bytes);

/* Back from a buffer; below zero, and nothing changed, where it cannot be taken. */
STATEGATE_API stategate_result stategate_load(
    stategate_session *session, const void *buffer, size_t bytes);

/* Interface and graph that this code was made from. */
STATEGATE_API const char *stategate_tag(void);

/* The bare computation: from inputs, constants and states to outputs, gates and next states, in
 * the order of the manifest. Next states are left alone where their gate is closed. Not 0, and
 * nothing computed, where an input holds NaN or infinity. */
STATEGATE_API int stategate_compute(void *const *in, void *const *out);

#ifdef __cplusplus
}
#endif

#endif
"""
