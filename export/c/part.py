"""The C of a part of a step: one function for each of its units, and one that calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import LowerError, SpecError
from stategate.export.c import generator
from stategate.export.c.interface import STACK_BYTES, Function, c_type
from stategate.export.c.loops import Names, Unit, indented
from stategate.export.c.names import with_plain_names
from stategate.export.c.operators import written
from stategate.export.c.place import lives_of, placed
from stategate.export.c.program import Program
from stategate.export.c.view import Shape, View, pointer

Array = NDArray[Any]
_WIDEST = 8  # bytes of the widest element


@dataclass(slots=True)
class Foreign:
    """A node that emx-onnx-cgen writes."""

    operator: str
    function: str
    takes: list[View]  # contiguous
    gives: list[View]
    text: str = field(repr=False)

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return [view.buffer for view in self.takes]

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [view.buffer for view in self.gives]

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        arguments = ", ".join(
            f"(void *)(uintptr_t)({pointer(names[v.buffer], v.offset)})"
            for v in (*self.takes, *self.gives)
        )
        return [f"{self.function}({arguments});"]

    @property
    def prototype(self) -> str:
        """Its declaration, as the generator wrote it."""
        start = self.text.index(f"void {self.function}(")
        return self.text[start : self.text.index(")", start) + 1] + ";"


@dataclass(frozen=True, slots=True)
class Part:
    """A function of generated code."""

    files: dict[str, str]  # C files by name
    function: Function  # how it is called
    weights: dict[str, Array]  # constants that it reads, by the name among the takes
    inexact: set[str]  # operators whose last bits differ from one C library to another


class Tensors(dict[str, tuple[str, Shape]]):
    """Dtype and shape of every tensor of a graph; an error for one of which they are not known."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        kinds = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            with suppress(SpecError):  # a type that C lacks
                kinds[value.name] = dtype_from_onnx(tensor.elem_type).name
                if tensor.HasField("shape") and all(d.dim_value for d in tensor.shape.dim):
                    shape = tuple(d.dim_value for d in tensor.shape.dim)
                    self[value.name] = kinds[value.name], shape
        for constant in graph.initializer:
            array = numpy_helper.to_array(constant)
            self[constant.name] = array.dtype.name, array.shape
        for node in graph.node:
            # Shape inference does not always tell a result without axes from an unknown one.
            shapes = [self[n][1] if n in self else None for n in node.input if n]
            if node.op_type == "GatherND" and None not in shapes:
                has_none = shapes[1] == (len(shapes[0] or ()),)
            else:
                has_none = bool(shapes) and all(shape == () for shape in shapes)
            for name in node.output:
                if has_none and name in kinds and name not in self:
                    self[name] = kinds[name], ()

    def __missing__(self, name: str) -> tuple[str, Shape]:
        makers = [node for node in self._graph.node if name in node.output]
        by = [f", made by {node.domain or 'ai.onnx'}.{node.op_type}" for node in makers]
        raise LowerError(
            "a tensor of the graph has no known shape, or a type that C lacks",
            found="".join([name, *by]),
        )


def write_part(
    name: str,
    model: onnx.ModelProto,
    tensors: Tensors,
    nodes: Sequence[onnx.NodeProto],
    takes: Sequence[str],
    gives: Sequence[str],
) -> Part:
    """The C of some nodes of a step."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    uses = Counter([n for node in nodes for n in node.input] + list(gives))
    program = Program(tensors, constants, takes, uses)
    foreign: list[Foreign] = []
    for node in nodes:
        is_known = all(n in program.tensors for n in (*node.input, *node.output) if n)
        if not is_known or not written(program, node):
            foreign.append(_foreign(f"{name}_{len(foreign)}", program, model, tensors, node))
    places = program.finish(gives)
    text, prototype, weights = _text(name, program, foreign, takes, gives, places)
    files = {f"{name.removeprefix('stategate_')}.c": text}
    files |= {f"{one.function.removeprefix('stategate_')}.c": one.text for one in foreign}
    return Part(
        files,
        Function(prototype + ";", (*takes, *weights), tuple(gives)),
        {weight: program.weights[weight] for weight in weights},
        {one.operator for one in foreign if generator.inexact(one.text)},
    )


def _foreign(
    function: str,
    program: Program,
    model: onnx.ModelProto,
    tensors: Tensors,
    node: onnx.NodeProto,
) -> Foreign:
    initial = {t.name: t for t in model.graph.initializer}
    inputs = [n for n in dict.fromkeys(node.input) if n and n not in initial]
    results = [n for n in node.output if n]
    generator.refuse(node, initial, program.tensors.get(results[0], ("unknown", ()))[0])

    def value(name: str) -> onnx.ValueInfoProto:
        dtype, shape = tensors[name]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, shape)

    one = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            function,
            [value(n) for n in inputs],
            [value(n) for n in results],
            [initial[n] for n in dict.fromkeys(node.input) if n in initial],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    text = generator.c_of(with_plain_names(one, function), function)
    takes = [program.contiguous(n) for n in inputs]
    gives = []
    for name in results:
        gives.append(program.buffer(name, *program.tensors[name]))
    operator = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    unit = Foreign(operator, function, takes, gives, generator.OPENING + text)
    program.add(unit)
    program.alias({view.buffer: view for view in gives})
    return unit


def _text(
    name: str,
    program: Program,
    foreign: Sequence[Foreign],
    takes: Sequence[str],
    gives: Sequence[str],
    places: Mapping[str, str],
) -> tuple[str, str, list[str]]:
    """The C of all units, the prototype of the function that calls them, and its weights."""
    units = [unit for unit in program.units if unit.writes()]
    used = dict.fromkeys(b for unit in units for b in (*unit.reads(), *unit.writes()))
    weights = [b for b in program.weights if b in used]
    names = {buffer: f"b{i}" for i, buffer in enumerate(program.buffers)}
    results = {places[result]: result for result in gives}
    temporaries = {
        b: program.buffers[b].elements
        for b in used
        if program.buffers[b].is_temporary and b not in results
    }

    def parameter(buffer: str, kind: str) -> str:
        type_ = c_type(program.buffers[buffer].dtype)
        return f"{kind}{type_} *STATEGATE_RESTRICT {names[buffer]}"

    lines = ['#include "stategate_kernels.h"', *(one.prototype for one in foreign), ""]
    calls = []
    for i, unit in enumerate(units):
        filled = dict.fromkeys(unit.writes())
        arguments = dict.fromkeys([*unit.reads(), *filled])
        parameters = [parameter(b, "" if b in filled else "const ") for b in arguments]
        lines += [
            f"STATEGATE_ALONE void f{i}({', '.join(parameters)})",
            "{",
            *indented(unit.body(names)),
            "}",
            "",
        ]
        calls.append(f"    f{i}({', '.join(names[b] for b in arguments)});")
    parameters = [parameter(b, "const ") for b in (*takes, *weights)]
    parameters += [parameter(places[result], "") for result in gives]
    prototype = f"void {name}({', '.join(parameters) or 'void'})"
    lines += [f"{prototype};", prototype, "{", *_pools(program, units, temporaries, names), *calls]
    unused = [b for b in takes if b not in used]
    lines += [f"    (void){names[b]};" for b in unused]
    return "\n".join([*lines, "}", ""]), prototype, weights


def _pools(
    program: Program,
    units: Sequence[Unit],
    temporaries: Mapping[str, int],
    names: Names,
) -> list[str]:
    """Memory of temporaries, a pool for each type, so that none is read as another."""
    lives = lives_of([u.reads() for u in units], [u.writes() for u in units], temporaries)
    kinds: dict[str, dict[str, Any]] = {}
    for buffer, life in lives.items():
        kinds.setdefault(program.buffers[buffer].dtype, {})[buffer] = life
    pools = {dtype: placed(of_kind) for dtype, of_kind in kinds.items()}
    large = sum(total for _, total in pools.values()) * _WIDEST > STACK_BYTES
    lines = []
    for dtype, (at, total) in pools.items():
        kind = c_type(dtype)
        place = "STATEGATE_TEMPORARY " if large else ""
        lines.append(f"    {place}{kind} {kind}_pool[{total}] STATEGATE_CACHE_LINE;")
        lines += [
            f"    {kind} *const {names[b]} = {pointer(f'{kind}_pool', start)};"
            for b, start in at.items()
        ]
    return lines
