"""Products: rows of tensors with constant matrices, and tensors with one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.export.c.loops import Names, nested
from stategate.export.c.view import View, pointer

Array = NDArray[Any]
Keep = Callable[[str, Array], str]  # puts an array among the weights, and gives its buffer's name

TILE = 128  # columns, as in stategate_kernels.h
NARROW = 16  # columns that are summed in four chains


def padded(columns: int) -> int:
    """Columns up to whole vectors."""
    return -(-columns // NARROW) * NARROW


def tiles(matrix: Array, tile: int = TILE) -> Array:
    """A matrix ``(rows, columns)`` as kernels read it: tiles of columns, each row by row."""
    rows, columns = matrix.shape
    wide = np.zeros((rows, padded(columns)), matrix.dtype)
    wide[:, :columns] = matrix
    return np.concatenate(
        [wide[:, at : at + tile].ravel() for at in range(0, wide.shape[1], tile)] or [wide.ravel()]
    )


def row_of(values: Array) -> Array:
    """A row of biases up to whole vectors."""
    row = np.zeros(padded(values.size), np.float32)
    row[: values.size] = values
    return row


@dataclass(slots=True)
class Segment:
    """Columns of one product that stand beside those of others with the same input."""

    matrix: Array  # (rows, columns), float32 or int8
    start: int
    bias: Array | None = None  # (columns,)
    scales: Array | None = None  # (columns,), of int8

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return int(self.matrix.shape[1])

    @property
    def is_integer(self) -> bool:
        """Whether the weights are int8."""
        return self.scales is not None

    @property
    def is_column(self) -> bool:
        """Whether it is one column of floats, which is a sum of products, its rows side by side."""
        return self.columns == 1 and not self.is_integer


@dataclass(slots=True)
class Product:
    """Rows of a tensor times constant matrices, all of which take the same rows."""

    x: View  # (m, rows), contiguous
    buffer: str  # of the results, (m, columns)
    keep: Keep
    segments: list[Segment] = field(default_factory=list)
    _weights: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        """Columns with those that fill up vectors."""
        return 1 if self.is_column else sum(padded(s.columns) for s in self.segments)

    @property
    def is_column(self) -> bool:
        """Whether it is one column of floats."""
        return self.segments[0].is_column

    @property
    def is_integer(self) -> bool:
        """Whether the weights are int8."""
        return self.segments[0].is_integer

    def has_room_for(self, segment: Segment) -> bool:
        """Whether columns with the same input can join: of the same type, for one row."""
        alike = segment.is_integer == self.is_integer
        return alike and self.x.shape[0] == 1 and not (self.is_column or segment.is_column)

    def freeze(self) -> None:
        """Put the weights among those of the step; nothing may join after that."""
        columns = self.columns
        rows = self.segments[0].matrix.shape[0]
        matrix = np.zeros((rows, columns), self.segments[0].matrix.dtype)
        bias, scales = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
        for segment in self.segments:
            part = slice(segment.start, segment.start + segment.columns)
            matrix[:, part] = segment.matrix
            if segment.bias is not None:
                bias[part] = segment.bias
            if segment.scales is not None:
                scales[part] = segment.scales
        self._weights = {
            "w": self.keep(f"{self.buffer}.w", matrix if self.is_column else tiles(matrix)),
            "init": self.keep(f"{self.buffer}.init", bias),
        }
        if self.is_integer:
            self._weights["scales"] = self.keep(f"{self.buffer}.scales", scales)

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return [self.x.buffer, *self._weights.values()]

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [self.buffer]

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        m, rows = self.x.shape
        columns = self.columns
        weights = {key: names[buffer] for key, buffer in self._weights.items()}
        w, init = weights["w"], weights["init"]
        x, out = pointer(names[self.x.buffer], self.x.offset), names[self.buffer]
        if self.is_column:
            dot = f"{init}[0] + stategate_dot({rows}, {w}, {x} + row * {rows})"
            return nested([("row", m)], [f"{out}[row] = {dot};"])
        if self.is_integer:
            if m > 1:
                x, out = f"{x} + row * {rows}", f"{out} + row * {columns}"
            call = (
                f"stategate_integer_product({columns}, {w}, {rows}, {x}, {weights['scales']}, "
                f"{init}, {out});"
            )
            return nested([("row", m)] if m > 1 else [], [call])
        if m > 1:
            walk = f"1, 0, {rows}, 1, {x}, {rows}"
            return [f"stategate_rows({m}, {columns}, {w}, {walk}, {init}, {out});"]
        if columns == NARROW:
            return [f"stategate_narrow_product({w}, {rows}, {x}, {init}, {out});"]
        return [f"stategate_product({columns}, {w}, {rows}, {x}, 0, NULL, {init}, {out});"]


@dataclass(slots=True)
class Contraction:
    """``out[..., m, n] = sum over k of a[..., m, k] b[..., k, n]``, both computed."""

    a: View
    b: View  # with stride 1 along k or along n
    output: View  # contiguous

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return list(dict.fromkeys([self.a.buffer, self.b.buffer]))

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [self.output.buffer]

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        *batch, m, n = self.output.shape
        k = self.a.shape[-1]
        loops = [(f"i{i}", extent) for i, extent in enumerate(batch)]

        def at(view: View) -> str:
            parts = [
                f"{name} * {stride}"
                for (name, extent), stride in zip(loops, view.strides, strict=False)
                if stride and extent > 1
            ]
            return " + ".join([names[view.buffer], str(view.offset), *parts])

        a, b, out = at(self.a), at(self.b), at(self.output)
        (next_a, step), (row, column) = self.a.strides[-2:], self.b.strides[-2:]
        if column == 1 or n == 1 and row != 1:
            lines = [f"stategate_mix({m}, {n}, {k}, {a}, {step}, {next_a}, {b}, {row}, {out});"]
        elif n == 1:
            lines = [f"stategate_dots({m}, {k}, {a}, {next_a}, {b}, 0, {out});"]
        else:
            a, out = f"{a} + i * {next_a}", f"{out} + i * {n}"
            dots = f"stategate_dots({n}, {k}, {a}, 0, {b}, {column}, {out});"
            lines = nested([("i", m)], [dots])
        return nested([loop for loop in loops if loop[1] > 1], lines)
