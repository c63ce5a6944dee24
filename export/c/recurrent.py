"""LSTM, GRU and RNN: for each step of time two products, and the gates of all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stategate.export.c.loops import Names, indented, nested
from stategate.export.c.matrices import padded, row_of, tiles
from stategate.export.c.program import Program
from stategate.export.c.view import View, pointer

Array = NDArray[Any]

TILE = 64  # columns, as STATEGATE_GATE_TILE

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"],
}  # fmt: skip


@dataclass(slots=True)
class Recurrent:
    """One direction of a recurrent operator over a sequence."""

    kind: str  # ``LSTM``, ``GRU`` or ``RNN``
    x: View  # ``(steps, rows, inputs)``, contiguous
    y: View | None  # ``(steps, rows, units)`` of the outputs, or None
    last: list[View]  # ``(rows, units)`` of each state after the last step, in order h, c
    first: list[View | None]  # the same before the first, each None for zeros
    is_reversed: bool  # whether the sequence is walked from its end
    # of a GRU: whether the product with h is reset, and not h (ONNX's ``linear_before_reset``)
    resets_late: bool
    buffers: dict[str, str] = field(default_factory=dict)

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        views = [self.x, *self.first]
        return [*(v.buffer for v in views if v is not None), *self.buffers.values()]

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [*(v.buffer for v in self.last), *([self.y.buffer] if self.y is not None else [])]

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        steps, rows, inputs = self.x.shape
        units = self.last[0].shape[-1]
        states = "hc" if self.kind == "LSTM" else "h"
        buffers = {key: names[buffer] for key, buffer in self.buffers.items()}

        def at(view: View, *indices: str) -> str:
            parts = [
                f"{index} * {stride}"
                for index, stride, extent in zip(indices, view.strides, view.shape, strict=False)
                if extent > 1
            ]
            return pointer(names[view.buffer], view.offset, *parts)

        lines, ends = [], []
        turns = [name for name, extent in (("row", rows), ("t", steps)) if extent > 1]
        for state, first, last in zip(states, self.first, self.last, strict=True):
            if first is None or steps > 1:
                lines.append(f"float {state}_now[{padded(units)}] STATEGATE_CACHE_LINE = {{0}};")
                lines.append(f"const float *{state} = {state}_now;")
                if first is not None:
                    lines.append(f"(void)memcpy({state}_now, {at(first, 'row')}, {units * 4});")
            else:
                lines.append(f"const float *{state} = {at(first, 'row')};")
            if steps > 1:  # each step writes where the next one reads
                lines.append(f"float *{state}_next = {state}_now;")
                ends.append(f"(void)memcpy({at(last, 'row')}, {state}, {units * 4});")
            else:
                lines.append(f"float *{state}_next = {at(last, 'row')};")
        turn = f"({' + '.join(turns)}) % 2 != 0" if turns else "STATEGATE_TURN(h, h_next)"
        walk = f"{steps - 1} - t" if self.is_reversed and steps > 1 else "t"
        step = [f"const float *x = {at(self.x, f'({walk})', 'row')};"]
        step += [f"const bool is_backward = {turn};"]
        step += self._step(buffers, inputs, units)
        if self.y is not None:
            step.append(f"(void)memcpy({at(self.y, f'({walk})', 'row')}, h_next, {units * 4});")
        lines += nested([("t", steps)] if steps > 1 else [], step)
        lines += ends
        if rows > 1:
            return nested([("row", rows)], lines)
        return ["{", *indented(lines), "}"]

    def _step(self, buffers: Mapping[str, str], inputs: int, units: int) -> list[str]:
        columns = padded(_GATES[self.kind] * units)
        sums = f"float sums[{columns}] STATEGATE_CACHE_LINE;"
        if self.kind != "GRU":
            call = _product(columns, buffers["w"], inputs, "x", units, "h", buffers["b"], "sums")
            if self.kind == "LSTM":
                return [sums, call, f"stategate_lstm({units}, sums, c, c_next, h_next);"]
            return [sums, call, f"stategate_rnn({units}, sums, h_next);"]
        two, one = padded(2 * units), padded(units)
        lines = [sums, *(f"float {n}[{one}] STATEGATE_CACHE_LINE;" for n in ("fresh", "given"))]
        # Update and reset: of both inputs. The new content: of x, and apart from it of h.
        both = _product(two, buffers["w"], inputs, "x", units, "h", buffers["b"], "sums")
        of_x = _product(one, buffers["wn"], inputs, "x", 0, "NULL", buffers["bn"], "given")
        if self.resets_late:
            fresh = _product(one, buffers["rn"], units, "h", 0, "NULL", buffers["brn"], "fresh")
            cell = f"stategate_gru_late({units}, sums, given, fresh, h, h_next);"
            first, last = f"if (!is_backward) {{ {both} }}", f"if (is_backward) {{ {both} }}"
            return [*lines, first, of_x, fresh, last, cell]
        return [
            *lines,
            both,
            of_x,
            f"float reset[{one}] STATEGATE_CACHE_LINE;",
            f"stategate_gru_reset({units}, sums, h, reset);",
            _product(one, buffers["rn"], units, "reset", 0, "NULL", "given", "fresh"),
            f"stategate_gru({units}, sums, fresh, h, h_next);",
        ]


def _product(columns: int, w: str, n_x: int, x: str, n_y: int, y: str, init: str, out: str) -> str:
    """A call of the product that recurrent operators have."""
    row = f"{n_x}, {x}, {n_y}, {y}"
    return f"stategate_gates({columns}, {w}, {row}, {init}, {out}, is_backward);"


def recurrent(program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Add a recurrent operator; False where it is of a form that is not written here."""
    kind = node.op_type
    names = [*node.input, *[""] * (8 - len(node.input))]
    x, w, r, b, lengths, h, c, peepholes = names[:8]
    direction = attributes.get("direction", "forward")
    sides = 2 if direction == "bidirectional" else 1
    defaults = _ACTIVATIONS[kind] * sides
    weights, hidden = program.constant(w), program.constant(r)
    bias = program.constant(b)
    plain = (
        attributes.get("activations", defaults) == defaults
        and not lengths
        and not peepholes
        and not attributes.get("layout")
        and not attributes.get("clip")
        and not attributes.get("input_forget")
    )
    if not plain or weights is None or hidden is None or (b and bias is None):
        return False
    if weights.dtype != np.float32:
        return False
    units = int(hidden.shape[-1])
    if bias is None:
        bias = np.zeros((sides, 2 * _GATES[kind] * units), np.float32)
    sequence = program.contiguous(x)
    steps, rows, _ = sequence.shape
    outputs = [*node.output, *[""] * (3 - len(node.output))]
    states = 2 if kind == "LSTM" else 1
    starts = [program.contiguous(n) if n else None for n in (h, c)[:states]]
    y = _target(program, outputs[0], (steps, sides, rows, units))
    last = (sides, rows, units)
    lasts = [
        _target(program, name or program.fresh("last", "float32", last).buffer, last)
        for name in outputs[1 : 1 + states]
    ]
    for side in range(sides):
        one = Recurrent(
            kind,
            sequence,
            None if y is None else _side(y, 1, side),
            [_side(target, 0, side) for target in lasts if target is not None],
            [None if s is None else _side(s, 0, side) for s in starts],
            direction == "reverse" or side == 1,
            bool(attributes.get("linear_before_reset")),
        )
        prefix = next(o for o in outputs if o)
        parts = _parts(kind, weights[side], hidden[side], bias[side], units, one.resets_late)
        one.buffers = {key: program.keep(f"{prefix}.{side}.{key}", a) for key, a in parts.items()}
        program.add(one)
    for name, view in zip(outputs, [y, *lasts], strict=False):
        if name and view is not None:
            program.alias({name: view})
    return True


def _target(program: Program, name: str, shape: Sequence[int]) -> View | None:
    if not name:
        return None
    program.tensors.setdefault(name, ("float32", tuple(shape)))
    return program.buffer(name, "float32", tuple(shape))


def _side(view: View, axis: int, side: int) -> View:
    return view.sliced(axis, side, 1).without(axis)


def _parts(kind: str, w: Array, r: Array, bias: Array, units: int, late: bool) -> dict[str, Array]:
    """Weights in tiles: ``w`` for (x, h), and for the new content of a GRU each for itself."""
    gates = _GATES[kind] * units
    both = bias[:gates] + bias[gates:]
    if kind != "GRU":
        return {"w": tiles(np.concatenate([w.T, r.T]), TILE), "b": row_of(both)}
    two = 2 * units
    parts = {
        "w": tiles(np.concatenate([w[:two].T, r[:two].T]), TILE),
        "b": row_of(both[:two]),
        "wn": tiles(w[two:].T, TILE),
        "bn": row_of(bias[two:gates] if late else both[two:]),
        "rn": tiles(r[two:].T, TILE),
    }
    if late:
        parts["brn"] = row_of(bias[gates + two :])
    return parts
