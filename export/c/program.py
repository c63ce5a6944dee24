"""A part of a graph as a row of functions: operators that move become views, others loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.export.c.interface import c_type
from stategate.export.c.loops import Loop, Operand, Reduction, Statement, Unit
from stategate.export.c.matrices import Product, Segment
from stategate.export.c.scalar import expression, literal
from stategate.export.c.view import Buffer, Shape, View, strides_of, whole

Array = NDArray[Any]


class Program:
    """Functions of a part of a graph, in the order in which they run."""

    def __init__(
        self,
        tensors: Mapping[str, tuple[str, Shape]],
        constants: Mapping[str, Array],
        takes: Iterable[str],
        uses: Counter[str],
    ) -> None:
        self.tensors = dict(tensors)
        self.constants = constants
        self.uses = uses
        self.units: list[Unit] = []
        self.buffers: dict[str, Buffer] = {}
        self.weights: dict[str, Array] = {}  # constants that lie among the weights
        self.integers: dict[str, tuple[Array, Array]] = {}  # tensor: matrix of int8, and scales
        self._views: dict[str, View] = {}
        self._locals: dict[str, tuple[int, Loop]] = {}  # tensor: the loop that computes it
        self._segments: dict[str, tuple[int, Segment]] = {}  # tensor: columns of a product
        self._written: dict[str, int] = {}  # buffer: the last function that writes it
        for name in takes:
            dtype, shape = self.tensors[name]
            self.buffers[name] = Buffer(dtype, prod(shape), is_temporary=False)
            self._views[name] = whole(name, dtype, shape)

    # What an operator can ask for.

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's type."""
        return self.tensors[name][0]

    def shape(self, name: str) -> Shape:
        """Extents of a tensor."""
        return self.tensors[name][1]

    def constant(self, name: str) -> Array | None:
        """The value of a constant tensor."""
        return self.constants.get(name) if name else None

    def keep(self, name: str, array: Array) -> str:
        """Put an array among the weights."""
        name = self._free(name)
        self.weights[name] = np.ascontiguousarray(array)
        self.buffers[name] = Buffer(array.dtype.name, array.size, is_temporary=False)
        return name

    def view(self, name: str) -> View:
        """Where the elements of a tensor lie, from now on at the latest."""
        if name not in self._views:
            array = self.constants[name]
            self._views[name] = whole(self.keep(name, array), array.dtype.name, array.shape)
        view = self._views[name]
        if view.buffer in self._locals:
            self._store(view.buffer)
        return view

    def alias(self, views: Mapping[str, View]) -> None:
        """Let the results of an operator that only moves be views of what it takes."""
        for name, view in views.items():
            self._views[name] = view
            # Whoever takes the view takes what it shows.
            self.uses[view.buffer] += self.uses[name]
        for buffer in {view.buffer for view in views.values()}:
            self.uses[buffer] -= 1

    def moved(self, name: str) -> View:
        """The view of a tensor without asking for its elements yet."""
        if name not in self._views:
            return self.view(name)
        return self._views[name]

    def contiguous(self, name: str) -> View:
        """The elements of a tensor one after the other, copied where they are not."""
        view = self.view(name)
        return view if view.is_contiguous else self.copied(view)

    def copied(self, view: View) -> View:
        """The elements of a view in a buffer of their own."""
        copy = self.fresh(f"{view.buffer}.copy", view.dtype, view.shape)
        self.compute_views("Identity", [view], copy.buffer)
        return self.view(copy.buffer)

    def fresh(self, name: str, dtype: str, shape: Shape) -> View:
        """A new tensor, whose elements are yet to be computed."""
        name = self._free(name)
        self.tensors[name] = (dtype, shape)
        self.uses[name] = 1
        return whole(name, dtype, shape)

    def _free(self, name: str) -> str:
        """A name that no tensor of the graph has, and no buffer: a graph may use any names."""
        while name in self.tensors or name in self.buffers:
            name += "."
        return name

    def buffer(self, name: str, dtype: str, shape: Shape) -> View:
        """Memory for something that a unit fills, and the view of all of it."""
        self.buffers[name] = Buffer(dtype, prod(shape))
        return whole(name, dtype, shape)

    def add(self, unit: Unit) -> None:
        """Run a function after those before it."""
        self.units.append(unit)
        for name in unit.writes():
            self._written[name] = len(self.units) - 1

    # Loops over elements.

    def compute(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Compute a tensor element by element; False where the operator is not written here."""
        dtype, shape = self.tensors[output]
        constants = [self.constant(name) for name in inputs]
        dtypes = [self.dtype(name) if name else "float32" for name in inputs]
        write = expression(operator, dtypes, dtype, attributes or {}, constants)
        if write is None:
            return False
        operands: list[str | View] = []
        for name, constant in zip(inputs, constants, strict=True):
            if not name:
                operands.append("")
            elif constant is not None and constant.size == 1:
                operands.append(literal(constant.reshape(-1)[0], constant.dtype.name))
            else:
                operands.append(self.moved(name).broadcast(shape))
        self._statement(output, dtype, shape, operands, write)
        return True

    def computed(self, operator: str, inputs: Sequence[str], uses: int = 1) -> str:
        """A new float32 tensor, of the first operand's shape, that is read so often."""
        result = self.fresh(f"{inputs[0]}.{operator}", "float32", self.shape(inputs[0])).buffer
        self.uses[result] = uses
        self.compute(operator, inputs, result)
        return result

    def reduced(self, operator: str, name: str, axes: Sequence[int]) -> str:
        """A new float32 tensor with an extent of 1 along some axes of another."""
        shape = tuple(1 if a in axes else n for a, n in enumerate(self.shape(name)))
        result = self.fresh(f"{name}.{operator}", "float32", shape).buffer
        self.reduce(operator, name, result, axes)
        return result

    def compute_views(self, operator: str, views: Sequence[View], output: str) -> None:
        """The same of views."""
        dtype, shape = self.tensors[output]
        write = expression(operator, [v.dtype for v in views], dtype, {}, [None] * len(views))
        assert write is not None
        self._statement(output, dtype, shape, [v.broadcast(shape) for v in views], write)

    def _statement(
        self,
        output: str,
        dtype: str,
        shape: Shape,
        operands: Sequence[str | View],
        write: Any,
    ) -> None:
        axes = [i for i, n in enumerate(shape) if n != 1]
        extents = tuple(shape[i] for i in axes)
        views = {
            i: replace(v, shape=extents, strides=tuple(v.strides[a] for a in axes))
            for i, v in enumerate(operands)
            if isinstance(v, View)
        }
        earliest = max((self._ready(view, extents) for view in views.values()), default=-1)
        at, loop = self._loop(extents, earliest)
        terms = []
        for i, operand in enumerate(operands):
            if i not in views:
                terms.append(Operand(text=str(operand)))
                continue
            view = views[i]
            if view.buffer in loop.statements and self._is_same(view, extents):
                terms.append(Operand(local=view.buffer))
            else:
                if view.buffer in self._locals:
                    self.view(view.buffer)
                terms.append(Operand(view=view))
        loop.statements[output] = Statement(dtype, tuple(terms), write)
        self._locals[output] = (at, loop)
        self._views[output] = whole(output, dtype, shape)

    def _is_same(self, view: View, extents: Shape) -> bool:
        """Whether a view takes the element of the loop's own place."""
        return view.offset == 0 and view.strides == strides_of(extents)

    def _ready(self, view: View, extents: Shape) -> int:
        """The first function in which a view can be read."""
        if view.buffer in self._locals:
            at, loop = self._locals[view.buffer]
            return at if loop.shape == extents and self._is_same(view, extents) else at + 1
        return self._written.get(view.buffer, -1) + 1

    def _loop(self, extents: Shape, earliest: int) -> tuple[int, Loop]:
        for at in range(len(self.units) - 1, max(earliest, 0) - 1, -1):
            unit = self.units[at]
            if isinstance(unit, Loop) and unit.shape == extents:
                return at, unit
        loop = Loop(extents)
        self.units.append(loop)
        return len(self.units) - 1, loop

    def _store(self, name: str) -> None:
        at, loop = self._locals[name]
        if name not in loop.stored:
            dtype, shape = self.tensors[name]
            loop.stored[name] = whole(name, dtype, loop.shape)
            self.buffers[name] = Buffer(dtype, prod(shape))
            self._written[name] = at

    def copy_into(self, source: View | str, target: View) -> None:
        """Put the elements of a view, or one number in C, where another view says."""
        name = self.fresh(f"{target.buffer}.part", target.dtype, target.shape).buffer
        operand = source if isinstance(source, str) else source.broadcast(target.shape)
        self._statement(name, target.dtype, target.shape, [operand], lambda x: x[0])
        at, loop = self._locals.pop(name)
        strides = tuple(s for s, n in zip(target.strides, target.shape, strict=True) if n != 1)
        loop.stored[name] = replace(target, shape=loop.shape, strides=strides)
        self._written[target.buffer] = max(at, self._written.get(target.buffer, -1))

    def scaled(
        self, name: str, scales: Array, centres: Array | None, axis: int, output: str
    ) -> bool:
        """Integers as the floats that they stand for: ``(x - centre) * scale``."""
        dtype, shape = self.tensors[output]
        if dtype != "float32":
            return False
        operands: list[str | View] = [self.moved(name).broadcast(shape)]
        for what, array in (("scales", scales), ("centres", centres)):
            if array is None:
                operands.append("0")
            elif array.size == 1:
                operands.append(literal(array.reshape(-1)[0], array.dtype.name))
            else:
                buffer = self.keep(f"{output}.{what}", array)
                strides = tuple(int(a == axis % len(shape)) for a in range(len(shape)))
                operands.append(View(buffer, array.dtype.name, shape, strides))
        self._statement(
            output, dtype, shape, operands, lambda x: f"((float)({x[0]} - {x[2]}) * {x[1]})"
        )
        return True

    def rounded(self, name: str, scale: float, centre: Array, output: str) -> bool:
        """Floats as integers, each the nearest within its type: ``x / scale + centre``."""
        dtype, shape = self.tensors[output]
        limits = np.iinfo(dtype)

        def write(x: Sequence[str]) -> str:
            value = f"rintf({x[0]} / {literal(scale, 'float32')})"
            value = f"{value} + {int(centre.reshape(-1)[0])}.0f"
            bounded = f"stategate_within({value}, {limits.min}.0f, {limits.max}.0f)"
            return f"({c_type(dtype)}){bounded}"  # NaN is the least

        self._statement(output, dtype, shape, [self.moved(name).broadcast(shape)], write)
        return True

    def reduce(self, operator: str, name: str, output: str, axes: Sequence[int]) -> None:
        """Bring the elements of a tensor together along some axes."""
        shape = self.shape(name)
        axes = sorted(a % len(shape) for a in axes)
        ended = tuple(1 if a in axes else n for a, n in enumerate(shape))
        dtype = self.dtype(output)
        view = self.moved(name)
        plain = [a for a, n in enumerate(shape) if n != 1]
        extents = tuple(shape[a] for a in plain)
        strides = strides_of(ended)
        strides = tuple(0 if a in axes else strides[a] for a in plain)
        statements: dict[str, Statement] = {}
        flat = replace(view, shape=extents, strides=tuple(view.strides[a] for a in plain))
        if view.buffer in self._locals:
            loop = self._locals[view.buffer][1]
            if loop.shape == extents and self._is_same(flat, extents):
                self._pull(view.buffer, statements)
        if statements:
            source = Operand(local=view.buffer)
        else:
            self.view(name)
            source = Operand(view=flat)
        target = replace(self.buffer(output, dtype, ended), shape=extents, strides=strides)
        self.add(Reduction(operator, extents, statements, source, self.dtype(name), target))
        self._views[output] = whole(output, dtype, self.shape(output))

    def _pull(self, name: str, into: dict[str, Statement]) -> bool:
        """Move a statement that nobody else takes out of its loop, and those that only feed it."""
        at, loop = self._locals[name]
        if self.uses[name] != 1 or name in loop.stored or name not in loop.statements:
            return False
        statement = loop.statements[name]
        operands = []
        for operand in statement.operands:
            if operand.local and not self._pull(operand.local, into):
                self.view(operand.local)
                dtype, _ = self.tensors[operand.local]
                operand = Operand(
                    view=View(operand.local, dtype, loop.shape, strides_of(loop.shape))
                )
            operands.append(operand)
        del loop.statements[name]
        del self._locals[name]
        into[name] = replace(statement, operands=tuple(operands))
        return True

    # Products with constant matrices.

    def product(
        self,
        x: View,
        matrix: Array,
        output: str,
        bias: Array | None = None,
        scales: Array | None = None,
    ) -> None:
        """Rows of a contiguous view ``(m, rows)`` times a constant matrix."""
        segment = Segment(matrix, 0, bias, scales)
        for at in range(len(self.units) - 1, self._written.get(x.buffer, -1), -1):
            unit = self.units[at]
            if isinstance(unit, Product) and unit.x == x and unit.has_room_for(segment):
                segment.start = unit.columns
                unit.segments.append(segment)
                break
        else:
            name = self._free(f"{output}.product")
            unit = Product(x, name, self.keep, [segment])
            at = len(self.units)
            self.add(unit)
        self.buffer(unit.buffer, "float32", (x.shape[0], unit.columns))
        shape = self.shape(output)
        inner = strides_of((*shape[:-1], unit.columns if x.shape[0] > 1 else 1))
        strides = (*inner[:-1], 1) if shape else ()
        self._views[output] = View(unit.buffer, "float32", shape, strides, segment.start)
        self._segments[output] = (at, segment)

    def add_bias(self, name: str, bias: Array, output: str) -> bool:
        """Start the sums of a product with a constant row, where nobody takes it without that."""
        if name not in self._segments or self.uses[name] != 1:
            return False
        segment = self._segments[name][1]
        is_row = bias.size == segment.columns and bias.shape[-1:] in ((), (bias.size,))
        if segment.bias is not None or not is_row or self.shape(output) != self.shape(name):
            return False
        segment.bias = bias.reshape(-1)
        self._views[output] = self._views[name]
        return True

    def finish(self, gives: Sequence[str]) -> dict[str, str]:
        """The buffer of each output, which lies in one of its own; weights are where they stay."""
        places: dict[str, str] = {}
        for name in gives:
            view = self.view(name)
            own = self.buffers[view.buffer]
            fills = view.is_contiguous and view.size == own.elements
            if fills and own.is_temporary and view.buffer not in places.values():
                places[name] = view.buffer
                continue
            result = self.fresh(f"{name} as output", view.dtype, self.shape(name)).buffer
            self.compute_views("Identity", [view], result)
            places[name] = self.view(result).buffer
        for unit in self.units:
            if isinstance(unit, Product):
                unit.freeze()
            elif isinstance(unit, Loop):
                unit.drop_unused()
        return places
