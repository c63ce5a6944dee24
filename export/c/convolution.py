"""Convolutions over one or two axes, as products of neighbouring places or tap by tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from stategate.export.c.loops import Names, indented, nested
from stategate.export.c.matrices import padded, row_of, tiles
from stategate.export.c.program import Program
from stategate.export.c.view import View, pointer

_FEW = 8  # channels of a group below which a product would be mostly padding


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel goes over one axis."""

    extent: int  # of the input
    places: int  # of the output
    taps: int
    stride: int
    dilation: int
    pad: int  # in front

    def inside(self, tap: int) -> tuple[int, int]:
        """The output places whose input for a tap is no padding: from, to."""
        first = self.pad - tap * self.dilation
        low = max(0, -(-first // self.stride))
        high = min(self.places, (self.extent - 1 + first) // self.stride + 1)
        return low, max(low, high)

    @property
    def span(self) -> int:
        """How far the taps of all places reach, padding counted."""
        return (self.places - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    @property
    def is_padded(self) -> bool:
        """Whether a tap can lie outside of the input."""
        return any(self.inside(tap) != (0, self.places) for tap in range(self.taps))

    def guarded(self, place: str, lines: Sequence[str]) -> list[str]:
        """C statements that run where a place is no padding; without `if` where none can be."""
        ends = [f"{place} >= 0"] if self.pad > 0 else []
        if self.span - self.pad > self.extent:
            ends.append(f"{place} < {self.extent}")
        return [f"if ({' && '.join(ends)}) {{", *indented(lines), "}"] if ends else [*lines]


@dataclass(slots=True)
class Convolution:
    """A convolution with constant weights."""

    x: View  # ``(batch, channels, *extents)``, contiguous
    output: View  # ``(batch, results, *places)``, contiguous
    windows: tuple[Window, Window]  # for each of two axes; one axis has a first of extent 1
    groups: int  # groups of channels
    w: str  # buffer of the weights: tiles for each group, or ``(results, channels, taps...)``
    bias: str  # buffer of the biases
    sums: str = ""  # buffer of the results of a row of places, place by place
    # buffer of the lines of the input that those places see, with their padding; empty where they
    # are read where they lie
    band: str = ""

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return [self.x.buffer, self.w, self.bias]

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [self.output.buffer, *filter(None, (self.sums, self.band))]

    @property
    def _channels(self) -> int:
        return self.x.shape[1] // self.groups

    @property
    def _results(self) -> int:
        return self.output.shape[1] // self.groups

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        lines = self._tap_by_tap(names) if self._results < _FEW else self._by_rows(names)
        loops = [("n", self.x.shape[0]), ("g", self.groups)]
        loops = [loop for loop in loops if loop[1] > 1]
        fixed = [f"const int32_t {name} = 0;" for name in "ng" if name not in dict(loops)]
        return [*fixed, *nested(loops, lines)]

    def _places(self, names: Names) -> tuple[str, str]:
        """The first channel of a group in the input, and in the output."""
        inputs = self._channels * prod(w.extent for w in self.windows)
        outputs = self._results * prod(w.places for w in self.windows)
        x = pointer(names[self.x.buffer], self.x.offset, f"(n * {self.groups} + g) * {inputs}")
        return x, f"{names[self.output.buffer]} + (n * {self.groups} + g) * {outputs}"

    def _by_rows(self, names: Names) -> list[str]:
        """A row of places at a time: weights that are read once serve some of them."""
        rows, columns = self.windows
        width = padded(self._results)
        x, out = self._places(names)
        sums = names[self.sums]
        lines = self._channels * rows.taps
        first, line = f"x + oh * {rows.stride * columns.extent}", rows.extent * columns.extent
        if self.band:
            first, line = names[self.band], columns.span
        w, bias = f"{names[self.w]} + g * {width * lines * columns.taps}", names[self.bias]
        walk = f"{lines}, {line}, {columns.taps}, {columns.dilation}, {first}, {columns.stride}"
        m = columns.places
        area = rows.places * m
        steps = [
            *(self._fill(names[self.band]) if self.band else []),
            f"stategate_rows({m}, {width}, {w}, {walk}, {bias} + g * {width}, {sums});",
            *nested(
                [("k", self._results), ("ow", m)],
                [f"out[k * {area} + oh * {m} + ow] = {sums}[ow * {width} + k];"],
            ),
        ]
        return [
            f"const float *x = {x};",
            f"float *out = {out};",
            *nested([("oh", rows.places)], steps),
        ]

    def _fill(self, band: str) -> list[str]:
        """Copy the lines that a row of places sees, with zeros for padding."""
        rows, columns = self.windows
        extent = max(0, min(columns.extent, columns.span - columns.pad))
        line = (
            f"(void)memcpy(line + {columns.pad}, "
            f"x + (c * {rows.extent} + h) * {columns.extent}, {extent}u * sizeof *line);"
        )
        copy = [
            f"float *line = {band} + (c * {rows.taps} + i) * {columns.span};",
            f"const int32_t h = oh * {rows.stride} + i * {rows.dilation} - {rows.pad};",
            f"(void)memset(line, 0, {columns.span}u * sizeof *line);",
            *rows.guarded("h", [line]),
        ]
        return nested([("c", self._channels), ("i", rows.taps)], copy)

    def _tap_by_tap(self, names: Names) -> list[str]:
        rows, columns = self.windows
        taps = rows.taps * columns.taps
        x, out = self._places(names)
        area = rows.places * columns.places
        lines = []
        for tap in range(columns.taps):
            low, high = columns.inside(tap)
            if low == high:
                continue
            start = tap * columns.dilation - columns.pad
            step = "ow" if columns.stride == 1 else f"ow * {columns.stride}"
            lines += [
                f"for (int32_t ow = {low}; ow < {high}; ++ow) {{",
                f"    sums[ow] += weight[{tap}] * row[{step} + {start}];",
                "}",
            ]
        lines = lines or ["(void)row;", "(void)weight;"]  # every tap lies in the padding
        line = [
            f"const int32_t h = oh * {rows.stride} + i * {rows.dilation} - {rows.pad};",
            *rows.guarded(
                "h",
                [
                    f"const float *row = x + (c * {rows.extent} + h) * {columns.extent};",
                    f"const float *weight = w + (c * {rows.taps} + i) * {columns.taps};",
                    *lines,
                ],
            ),
        ]
        body = [
            f"const float *w = {names[self.w]} + "
            f"(g * {self._results} + k) * {self._channels * taps};",
            f"float sums[{columns.places}] STATEGATE_CACHE_LINE;",
            *nested(
                [("ow", columns.places)],
                [f"sums[ow] = {names[self.bias]}[g * {self._results} + k];"],
            ),
            *nested([("c", self._channels), ("i", rows.taps)], line),
            f"(void)memcpy(out + k * {area} + oh * {columns.places}, sums, sizeof sums);",
        ]
        return [
            f"const float *x = {x};",
            f"float *out = {out};",
            *nested([("k", self._results), ("oh", rows.places)], body),
        ]


def convolution(program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Add a convolution; False where it is of a form that is not written here."""
    x, w, *more = node.input
    weights = program.constant(w)
    bias = program.constant(more[0]) if more and more[0] else None
    shape, result = program.shape(x), program.shape(node.output[0])
    if weights is None or weights.dtype != np.float32 or (more and more[0] and bias is None):
        return False
    axes = weights.ndim - 2
    if axes not in (1, 2) or program.dtype(x) != "float32":
        return False
    taps = weights.shape[2:]
    strides = list(attributes.get("strides", [1] * axes))
    dilations = list(attributes.get("dilations", [1] * axes))
    pads = _pads(attributes, shape[2:], result[2:], taps, strides, dilations)
    windows = [
        Window(*parts)
        for parts in zip(shape[2:], result[2:], taps, strides, dilations, pads, strict=True)
    ]
    if axes == 1:
        windows.insert(0, Window(1, 1, 1, 1, 1, 0))
    groups = int(attributes.get("group", 1))
    results = weights.shape[0] // groups
    flat = weights.reshape(groups, results, -1)
    row = np.zeros(weights.shape[0], np.float32) if bias is None else bias
    if results >= _FEW:
        flat = np.concatenate([tiles(part.T) for part in flat])
        row = np.concatenate([row_of(part) for part in row.reshape(groups, results)])
    output = node.output[0]
    target = program.buffer(output, "float32", result)
    sums = band = ""
    if results >= _FEW:
        sums = _scratch(program, f"{output}.sums", windows[1].places * padded(results))
        if windows[0].taps > 1 or any(window.is_padded for window in windows):
            lines = shape[1] // groups * windows[0].taps
            band = _scratch(program, f"{output}.band", lines * windows[1].span)
    program.add(
        Convolution(
            program.contiguous(x),
            target,
            (windows[0], windows[1]),
            groups,
            program.keep(f"{output}.w", flat),
            program.keep(f"{output}.bias", row),
            sums,
            band,
        )
    )
    program.alias({output: target})
    return True


def _scratch(program: Program, name: str, elements: int) -> str:
    name = program.fresh(name, "float32", (elements,)).buffer
    return program.buffer(name, "float32", (elements,)).buffer


def _pads(
    attributes: Mapping[str, Any],
    extents: Sequence[int],
    places: Sequence[int],
    taps: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Padding in front of each axis."""
    mode = attributes.get("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return list(attributes.get("pads", [0] * len(extents)))[: len(extents)]
    pads = []
    for n, out, k, s, d in zip(extents, places, taps, strides, dilations, strict=True):
        total = max(0, (out - 1) * s + (k - 1) * d + 1 - n)
        pads.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return pads
