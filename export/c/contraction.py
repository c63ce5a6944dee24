"""Products of computed tensors, as MatMul has two and Einsum any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from stategate.export.c.matrices import Contraction
from stategate.export.c.program import Program
from stategate.export.c.view import View, strides_of

_KINDS = ("float32", "float64", "int32", "int64")
_NONE = "01"  # stand for the rows and the columns of an operand without them


def contracted(program: Program, a: View, b: View, output: str) -> bool:
    """Add the product of two tensors, as NumPy's matmul broadcasts them."""
    shape = program.shape(output)
    if len(a.shape) == 1 or len(b.shape) == 1:
        a = a if len(a.shape) > 1 else replace(a, shape=(1, *a.shape), strides=(0, *a.strides))
        b = b if len(b.shape) > 1 else replace(b, shape=(*b.shape, 1), strides=(*b.strides, 0))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if b.strides[-1] != 1 and b.strides[-2] != 1 and b.shape[-1] != 1:
        b = program.copied(b)
    elif b.strides[-1] != 1 and b.strides[-2] == 1 and a.strides[-1] != 1:
        a = program.copied(a)
    elif b.shape[-1] == 1 and (b.strides[-2] != 1 or a.strides[-1] != 1):
        a, b = program.copied(a), program.copied(b)
        b = replace(b, strides=(*b.strides[:-2], 1, 0))
    elif b.shape[-1] == 1:
        b = replace(b, strides=(*b.strides[:-2], 1, 0))
    full = (*batch, a.shape[-2], b.shape[-1])
    target = program.buffer(output, "float32", full)
    program.add(
        Contraction(
            a.broadcast((*batch, *a.shape[-2:])), b.broadcast((*batch, *b.shape[-2:])), target
        )
    )
    program.alias({output: replace(target, shape=shape, strides=strides_of(shape))})
    return True


def einsum(program: Program, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> bool:
    """Add an Einsum, one operand after the other; False where it is not written here."""
    output = node.output[0]
    dtype, equation = program.dtype(output), str(attributes["equation"])
    terms = _terms(equation, [len(program.shape(name)) for name in node.input])
    if terms is None or dtype not in _KINDS:
        return False
    *terms, out = terms
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, terms, strict=True):
        for letter, extent in zip(term, program.shape(name), strict=True):
            if extent != 1 and sizes.get(letter, 1) not in (1, extent):
                return False
            sizes[letter] = max(extent, sizes.get(letter, 1))
    # The checker of ONNX takes extents from the first operand, even where others are longer.
    if tuple(sizes[letter] for letter in out) != program.shape(output):
        return False

    sizes |= dict.fromkeys(_NONE, 1)

    def fresh(letters: str) -> str:
        shape = tuple(sizes[letter] for letter in letters)
        return program.fresh(f"{output}.product", dtype, shape).buffer

    # Each stands where it is read: it may be read several times.
    views = [program.view(name) for name in node.input]
    letters = "".join(dict.fromkeys(terms[0]))
    product = _along(views[0], terms[0], letters, sizes)
    for i, term in enumerate(terms):
        later, name = {*out}.union(*terms[i + 1 :]), ""
        if i:
            pair = ((product, letters), (views[i], term))
            shared = [letter for letter in out if letter in letters + term]
            both = "".join(dict.fromkeys([*shared, *letters, *term]))
            ended = [letter for letter in both if letter not in later]
            if dtype == "float32" and len(ended) == 1 and ended[0] in {*letters} & {*term}:
                letters, x, y = _as_matrices(pair, both, ended[0], sizes)
                name = fresh(letters)
                contracted(program, x, y, name)
                product = program.view(name)
                continue
            name, letters = fresh(both), both
            program.compute_views("Mul", [_along(v, t, both, sizes) for v, t in pair], name)
        axes = [at for at, letter in enumerate(letters) if letter not in later]
        if axes:
            if not name:
                name = fresh(letters)
                program.compute_views("Identity", [product], name)
            letters = "".join(letter for letter in letters if letter in later)
            whole_product, name = name, fresh(letters)
            program.reduce("ReduceSum", whole_product, name, axes)
        product = program.view(name) if name else product
    program.alias({output: product.transposed([letters.index(letter) for letter in out])})
    return True


def _as_matrices(
    pair: Sequence[tuple[View, str]], both: str, k: str, sizes: Mapping[str, int]
) -> tuple[str, View, View]:
    """Letters of the product of two operands that is summed over one, and each as a matrix."""
    (a, first), (b, second) = pair
    m = next((letter for letter in reversed(first) if letter not in second), "")
    n = next((letter for letter in reversed(second) if letter not in first), "")
    batch = "".join(letter for letter in both if letter not in m + k + n)
    x = _along(a, first, batch + (m or _NONE[0]) + k, sizes)
    return batch + m + n, x, _along(b, second, batch + k + (n or _NONE[1]), sizes)


def _along(view: View, term: str, letters: str, sizes: Mapping[str, int]) -> View:
    """A view over these letters: one that repeats is a diagonal, one that it lacks stands still."""
    steps = dict.fromkeys(letters, 0)
    for letter, extent, stride in zip(term, view.shape, view.strides, strict=True):
        steps[letter] += stride if extent != 1 else 0
    shape = tuple(sizes[letter] for letter in letters)
    return replace(view, shape=shape, strides=tuple(steps.values()))


def _terms(equation: str, ranks: Sequence[int]) -> list[str] | None:
    """Letters of each operand and of the result, with letters for what dots stand for."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    letters = "".join(terms).replace(".", "")
    extra = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=False)]
    dots = [n if "..." in t else 0 for t, n in zip(terms, extra, strict=False)]
    if len(terms) != len(ranks) or extra != dots or min(dots, default=0) < 0:
        return None
    axes = "".join(map(chr, range(0x3B1, 0x3B1 + max(dots, default=0))))
    if not arrow:
        out = "..." * any(dots) + "".join(sorted(c for c in letters if letters.count(c) == 1))
    terms = [t.replace("...", axes[len(axes) - n :]) for t, n in zip(terms, dots, strict=True)]
    out = out.replace("...", axes)
    return [*terms, out] if len({*out}) == len(out) and {*out} <= {*"".join(terms)} else None
