"""Loops over the elements of tensors: operators that feed one another share one, sums end one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Protocol

import numpy as np

from stategate.export.c.interface import c_type
from stategate.export.c.scalar import extreme, literal
from stategate.export.c.view import Shape, View, walked

# Sums under way at the same time, so that none waits for itself; they meet in pairs at the end.
LANES = 16
# Columns whose sums are kept while rows are added to them.
_BLOCK = 64
_INDENT = "    "

Names = Mapping[str, str]  # C names of buffers


class Unit(Protocol):
    """What becomes one C function."""

    def reads(self) -> list[str]:
        """Buffers that it reads."""

    def writes(self) -> list[str]:
        """Buffers that it fills, in part or whole."""

    def body(self, names: Names) -> list[str]:
        """Its C statements; none where nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Operand:
    """What a statement takes: a constant, the result of a statement before it, or an element."""

    text: str = ""  # the constant in C
    local: str = ""  # tensor of the statement before it
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One operator on one element."""

    dtype: str
    operands: tuple[Operand, ...]
    write: Callable[[Sequence[str]], str]


@dataclass(slots=True)
class Loop:
    """Statements for every element of one shape, which has no axis of extent 1."""

    shape: Shape
    statements: dict[str, Statement] = field(default_factory=dict)
    stored: dict[str, View] = field(default_factory=dict)

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return _buffers(self.statements)

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return list(dict.fromkeys(view.buffer for view in self.stored.values()))

    def drop_unused(self) -> None:
        """Leave out statements whose results nobody takes."""
        needed = set(self.stored)
        for name, statement in reversed(self.statements.items()):
            if name in needed:
                needed |= {o.local for o in statement.operands if o.local}
        self.statements = {n: s for n, s in self.statements.items() if n in needed}

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        if not self.stored:
            return []
        inner = _Inner(self.statements, tuple(self.stored.values()), self.shape)
        lines = inner.statements(names, inner.indices())
        for i, (name, view) in enumerate(self.stored.items()):
            place = inner.element(names, view, inner.strides_of_extra[i], inner.indices())
            lines.append(f"{place} = {inner.result(name)};")
        return nested([(f"i{i}", n) for i, n in enumerate(inner.extents)], lines)


@dataclass(slots=True)
class Reduction:
    """Elements of a loop brought together along some of its axes."""

    operator: str  # of ONNX
    shape: Shape  # of the loop, without axes of extent 1
    statements: dict[str, Statement]  # what is computed of each element first
    source: Operand  # what is brought together
    dtype: str
    output: View  # where results go, with stride 0 along the axes that end

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return _buffers(self.statements, self.source.view)

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [self.output.buffer]

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        extra = [self.output, *([self.source.view] if self.source.view is not None else [])]
        inner = _Inner(self.statements, extra, self.shape)
        out = inner.strides_of_extra[0]
        ends = [i for i, stride in enumerate(out) if stride == 0]
        stays = [i for i in range(len(out)) if i not in ends]
        kind = c_type(self.dtype)

        def source(indices: Sequence[str]) -> list[str]:
            lines = inner.statements(names, indices)
            if self.source.view is None:
                value = inner.result(self.source.local)
            else:
                value = inner.element(names, self.source.view, inner.strides_of_extra[1], indices)
            return [*lines, f"const {kind} x = {_prepared(self.operator, value)};"]

        def result(value: str, indices: Sequence[str]) -> str:
            place = inner.element(names, self.output, out, indices)
            return f"{place} = {self._finished(value)};"

        together = _together(self.operator, self.dtype)
        first = _first(self.operator, self.dtype)
        indices = inner.indices()
        outer = [(f"i{i}", inner.extents[i]) for i in stays]
        if not ends:  # every axis that ends has extent 1
            return nested(outer, [*source(indices), result("x", indices)])
        if stays and stays[-1] > ends[-1]:
            lines = self._in_columns(inner.extents, ends, stays[-1], source, result)
            return nested(outer[:-1], lines)
        last = ends[-1]
        extent = inner.extents[last]
        sums = [(f"i{i}", inner.extents[i]) for i in ends[:-1]]
        if extent < LANES:
            step = [*source(indices), f"sum = {together('sum', 'x')};"]
            lines = [
                f"{kind} sum = {first};",
                *nested([*sums, (f"i{last}", extent)], step),
                result("sum", indices),
            ]
            return nested(outer, lines)
        whole = extent - extent % LANES

        def lane(start: str) -> list[str]:
            at = [f"({start} + lane)" if i == last else name for i, name in enumerate(indices)]
            return [*source(at), f"lanes[lane] = {together('lanes[lane]', 'x')};"]

        rounds = [
            f"for (int32_t i{last} = 0; i{last} < {whole}; i{last} += {LANES}) {{",
            *indented(nested([("lane", LANES)], lane(f"i{last}"))),
            "}",
        ]
        if whole < extent:
            rounds += nested([("lane", extent - whole)], lane(str(whole)))
        meeting = [
            f"for (int32_t half = {LANES // 2}; half > 0; half /= 2) {{",
            *indented(
                [
                    "for (int32_t lane = 0; lane < half; ++lane) {",
                    f"{_INDENT}lanes[lane] = {together('lanes[lane]', 'lanes[lane + half]')};",
                    "}",
                ]
            ),
            "}",
        ]
        met = "lanes[0]"
        if kind == "float" and together("a", "b") == "a + b":
            meeting, met = [], "stategate_sum_of_lanes(lanes)"
        lines = [
            f"{kind} lanes[{LANES}];",
            *nested([("lane", LANES)], [f"lanes[lane] = {first};"]),
            *nested(sums, rounds),
            *meeting,
            result(met, indices),
        ]
        return nested(outer, lines)

    def _in_columns(
        self,
        extents: Shape,
        ends: Sequence[int],
        column: int,
        source: Callable[[Sequence[str]], list[str]],
        result: Callable[[str, Sequence[str]], str],
    ) -> list[str]:
        """Rows added to a block of sums, so that neighbours in memory are taken together."""
        kind, together = c_type(self.dtype), _together(self.operator, self.dtype)
        rows = [(f"i{i}", extents[i]) for i in ends]
        lines: list[str] = []
        extent = extents[column]
        whole = extent - extent % _BLOCK
        for start, width in ((0, _BLOCK if whole else 0), (whole, extent - whole)):
            if width == 0:
                continue
            base = "base" if whole and start == 0 else str(start)
            at = [f"({base} + j)" if i == column else f"i{i}" for i in range(len(extents))]
            step = [*source(at), f"sums[j] = {together('sums[j]', 'x')};"]
            block = [
                f"{kind} sums[{width}];",
                *nested([("j", width)], [f"sums[j] = {_first(self.operator, self.dtype)};"]),
                *nested([*rows, ("j", width)], step),
                *nested([("j", width)], [result("sums[j]", at)]),
            ]
            if base == "base":
                head = f"for (int32_t base = 0; base < {whole}; base += {_BLOCK}) {{"
            else:
                head = "{"
            lines += [head, *indented(block), "}"]
        return lines

    def _finished(self, value: str) -> str:
        if self.operator == "ReduceMean":
            count = self.shape and prod(self.shape) // prod(
                n for n, s in zip(self.shape, self.output.strides, strict=True) if s != 0
            )
            return f"{value} / {literal(max(1, int(count or 1)), self.dtype)}"
        if self.operator == "ReduceL2":
            return f"sqrtf({value})"
        return value


def _buffers(statements: Mapping[str, Statement], *more: View | None) -> list[str]:
    """Where the operands of statements lie, and more views, each once."""
    views = [o.view for s in statements.values() for o in s.operands]
    return list(dict.fromkeys(view.buffer for view in (*views, *more) if view is not None))


class _Inner:
    """The body of the fewest loops over a shape: names of indices, elements and results."""

    def __init__(
        self, statements: Mapping[str, Statement], extra: Sequence[View], shape: Shape
    ) -> None:
        self._statements = statements
        self._numbers = {name: i for i, name in enumerate(statements)}
        operands = [o for s in statements.values() for o in s.operands if o.view is not None]
        views = [*extra, *(o.view for o in operands if o.view is not None)]
        self.extents, strides = walked(shape, views)
        self.strides_of_extra = strides[: len(extra)]
        self._strides = {id(o): s for o, s in zip(operands, strides[len(extra) :], strict=True)}

    def indices(self) -> list[str]:
        return [f"i{i}" for i in range(len(self.extents))]

    def result(self, name: str) -> str:
        return f"t{self._numbers[name]}"

    def statements(self, names: Names, indices: Sequence[str]) -> list[str]:
        lines = []
        for name, statement in self._statements.items():
            texts = []
            for operand in statement.operands:
                if operand.view is not None:
                    strides = self._strides[id(operand)]
                    texts.append(self.element(names, operand.view, strides, indices))
                else:
                    texts.append(operand.text or (operand.local and self.result(operand.local)))
            kind = c_type(statement.dtype)
            # An element that is read twice is read once: an expression may name it twice.
            reads = {}
            for i, text in enumerate(texts):
                if "[" in text and statement.operands[i].view is not None:
                    reads[i] = f"{self.result(name)}_{i}"
            for i, local in reads.items():
                view = statement.operands[i].view
                assert view is not None
                lines.append(f"const {c_type(view.dtype)} {local} = {texts[i]};")
                texts[i] = local
            lines.append(f"const {kind} {self.result(name)} = {statement.write(texts)};")
        return lines

    def element(self, names: Names, view: View, strides: Shape, indices: Sequence[str]) -> str:
        parts = [
            index if stride == 1 else f"{index} * {stride}"
            for index, stride in zip(indices, strides, strict=True)
            if stride != 0
        ]
        if view.offset or not parts:
            parts.append(str(view.offset))
        return f"{names[view.buffer]}[{' + '.join(parts)}]"


def nested(loops: Sequence[tuple[str, int]], lines: Sequence[str]) -> list[str]:
    """Lines inside of loops, the outermost first."""
    result = list(lines)
    for name, extent in reversed(loops):
        head = f"for (int32_t {name} = 0; {name} < {extent}; ++{name}) {{"
        result = [head, *indented(result), "}"]
    return result


def indented(lines: Sequence[str]) -> Iterator[str]:
    """Lines one level deeper."""
    return (f"{_INDENT}{line}" for line in lines)


REDUCTIONS = frozenset(
    {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
     "ReduceSumSquare"}
)  # fmt: skip


def _prepared(operator: str, value: str) -> str:
    if operator in ("ReduceL2", "ReduceSumSquare"):
        return f"{value} * {value}"
    return f"fabsf({value})" if operator == "ReduceL1" else value


def _together(operator: str, dtype: str) -> Callable[[str, str], str]:
    if operator in ("ReduceMax", "ReduceMin"):
        return partial(extreme, dtype, operator == "ReduceMax")
    sign = "*" if operator == "ReduceProd" else "+"
    return lambda a, b: f"{a} {sign} {b}"


def _first(operator: str, dtype: str) -> str:
    """What changes nothing."""
    if operator == "ReduceProd":
        return literal(1, dtype)
    if operator in ("ReduceMax", "ReduceMin"):
        if dtype in ("float32", "float64"):
            return "-INFINITY" if operator == "ReduceMax" else "INFINITY"
        limits = np.iinfo(dtype)
        return literal(limits.min if operator == "ReduceMax" else limits.max, dtype)
    return literal(0, dtype)
