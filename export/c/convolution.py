"""Convolutions over one or two axes, as products of patches or tap by tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from stategate.export.c.loops import Names, indented, nested
from stategate.export.c.matrices import NARROW, padded, row_of, tiles
from stategate.export.c.program import Program
from stategate.export.c.view import View, whole

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
    def is_padded(self) -> bool:
        """Whether a tap can lie outside of the input."""
        return any(self.inside(tap) != (0, self.places) for tap in range(self.taps))


@dataclass(slots=True)
class Convolution:
    """A convolution with constant weights.

    Attributes:
        x: ``(batch, channels, *extents)``, contiguous.
        output: ``(batch, results, *places)``, contiguous.
        windows: For each of two axes; one axis has a first of extent 1.
        groups: Groups of channels.
        w: Buffer of the weights: tiles for each group, or ``(results, channels, taps...)``.
        bias: Buffer of the biases.
    """

    x: View
    output: View
    windows: tuple[Window, Window]
    groups: int
    w: str
    bias: str

    def reads(self) -> list[str]:
        """Buffers that it reads."""
        return [self.x.buffer, self.w, self.bias]

    def writes(self) -> list[str]:
        """Buffers that it fills."""
        return [self.output.buffer]

    @property
    def _channels(self) -> int:
        return self.x.shape[1] // self.groups

    @property
    def _results(self) -> int:
        return self.output.shape[1] // self.groups

    def body(self, names: Names) -> list[str]:
        """Its C statements."""
        lines = self._tap_by_tap(names) if self._results < _FEW else self._by_patches(names)
        loops = [("n", self.x.shape[0]), ("g", self.groups)]
        loops = [loop for loop in loops if loop[1] > 1]
        fixed = [f"const int32_t {name} = 0;" for name in "ng" if name not in dict(loops)]
        return [*fixed, *nested(loops, lines)]

    def _places(self, names: Names) -> tuple[str, str]:
        """The first channel of a group in the input, and in the output."""
        inputs = self._channels * prod(w.extent for w in self.windows)
        outputs = self._results * prod(w.places for w in self.windows)
        x = f"{names[self.x.buffer]} + {self.x.offset} + (n * {self.groups} + g) * {inputs}"
        return x, f"{names[self.output.buffer]} + (n * {self.groups} + g) * {outputs}"

    def _by_patches(self, names: Names) -> list[str]:
        rows, columns = self.windows
        length = self._channels * rows.taps * columns.taps
        width = padded(self._results)
        x, out = self._places(names)

        def place(window: Window, at: str, tap: str) -> str:
            return f"{at} * {window.stride} + {tap} * {window.dilation} - {window.pad}"

        value = f"x[(c * {rows.extent} + h) * {columns.extent} + w]"
        checks = [
            f"{name} >= 0 && {name} < {window.extent}"
            for name, window in (("h", rows), ("w", columns))
            if window.is_padded
        ]
        if checks:
            value = f"({' && '.join(checks)}) ? {value} : 0.0f"
        gather = nested(
            [("c", self._channels), ("i", rows.taps), ("j", columns.taps)],
            [
                f"const int32_t h = {place(rows, 'oh', 'i')}, w = {place(columns, 'ow', 'j')};",
                f"patch[(c * {rows.taps} + i) * {columns.taps} + j] = {value};",
            ],
        )
        tiles_of_group = f"{names[self.w]} + g * {width * length}"
        bias = f"{names[self.bias]} + g * {width}"
        product = (
            f"stategate_narrow_product({tiles_of_group}, {length}, patch, {bias}, sums);"
            if width == NARROW
            else f"stategate_product({width}, {tiles_of_group}, {length}, patch, 0, NULL, "
            f"{bias}, sums);"
        )
        area = rows.places * columns.places
        scatter = nested(
            [("k", self._results)], [f"out[k * {area} + oh * {columns.places} + ow] = sums[k];"]
        )
        steps = nested([("oh", rows.places), ("ow", columns.places)], [*gather, product, *scatter])
        return [
            f"const float *x = {x};",
            f"float *out = {out};",
            f"float patch[{length}] STATEGATE_CACHE_LINE, sums[{width}] STATEGATE_CACHE_LINE;",
            *steps,
        ]

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
            f"if (h >= 0 && h < {rows.extent}) {{",
            *indented(
                [
                    f"const float *row = x + (c * {rows.extent} + h) * {columns.extent};",
                    f"const float *weight = w + (c * {rows.taps} + i) * {columns.taps};",
                    *lines,
                ]
            ),
            "}",
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
            f"memcpy(out + k * {area} + oh * {columns.places}, sums, sizeof sums);",
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
    target = whole(output, "float32", result)
    program.buffer(output, "float32", target.size)
    program.add(
        Convolution(
            program.contiguous(x),
            target,
            (windows[0], windows[1]),
            groups,
            program.keep(f"{output}.w", flat),
            program.keep(f"{output}.bias", row),
        )
    )
    program.alias({output: target})
    return True


def _pads(
    attributes: Mapping[str, Any],
    extents: Sequence[int],
    places: Sequence[int],
    taps: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Padding in front of each axis."""
    mode = attributes.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if not mode.startswith("SAME"):
        return list(attributes.get("pads", [0] * len(extents)))[: len(extents)]
    pads = []
    for n, out, k, s, d in zip(extents, places, taps, strides, dilations, strict=True):
        total = max(0, (out - 1) * s + (k - 1) * d + 1 - n)
        pads.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return pads
