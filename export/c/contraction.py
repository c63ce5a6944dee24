"""Products of computed tensors, as MatMul has two and Einsum any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx

from stategate.export.c.matrices import Contraction
from stategate.export.c.program import Program
from stategate.export.c.view import View, strides_of

_KINDS = ("float32", "float64", "int32", "int64")
_NONE = "01"  # stand for the rows and the columns of an operand without them
_SUM = "2"  # stands for all letters over which two operands are summed


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

    def summed(name: str, letters: str, ended: Sequence[str]) -> tuple[View, str]:
        if not ended:
            return program.view(name), letters
        rest = "".join(letter for letter in letters if letter not in ended)
        result = fresh(rest)
        program.reduce("ReduceSum", name, result, [letters.index(letter) for letter in ended])
        return program.view(result), rest

    def operand(i: int) -> tuple[View, str]:
        """An operand without the letters that nothing else has."""
        elsewhere = {*out}.union(*terms[:i], *terms[i + 1 :])
        letters = "".join(dict.fromkeys(terms[i]))
        view = _along(views[i], terms[i], letters, sizes)
        single = [letter for letter in letters if letter not in elsewhere]
        if not single:
            return view, letters
        name = fresh(letters)
        program.compute_views("Identity", [view], name)
        return summed(name, letters, single)

    # Each stands where it is read: it may be read several times.
    views = [program.view(name) for name in node.input]
    product, letters = operand(0)
    for i in range(1, len(terms)):
        pair = [(product, letters), operand(i)]
        later = {*out}.union(*terms[i + 1 :])
        both = dict.fromkeys([c for c in out if c in letters + terms[i]] + [*letters, *pair[1][1]])
        ended = [letter for letter in both if letter not in later]
        if dtype == "float32" and ended:
            # Several letters are one: their product would have an element for each of their places.
            sizes[_SUM] = prod(sizes[letter] for letter in ended)
            pair = [_joined(program, view, term, ended, sizes) for view, term in pair]
            rest = "".join(letter for letter in both if letter in later)
            letters, x, y = _as_matrices(pair, rest + _SUM, _SUM, sizes)
            name = fresh(letters)
            contracted(program, x, y, name)
            product = program.view(name)
            continue
        letters = "".join(both)
        name = fresh(letters)
        program.compute_views("Mul", [_along(v, t, letters, sizes) for v, t in pair], name)
        product, letters = summed(name, letters, ended)
    program.alias({output: product.transposed([letters.index(letter) for letter in out])})
    return True


def _joined(
    program: Program, view: View, term: str, ended: Sequence[str], sizes: Mapping[str, int]
) -> tuple[View, str]:
    """An operand with one letter for those that end, moved only where it has to be."""
    rest = "".join(letter for letter in term if letter not in ended)
    ends = "".join(ended)
    for order, joined in ((rest + ends, rest + _SUM), (ends + rest, _SUM + rest)):
        shape = tuple(sizes[letter] for letter in joined)
        along = _along(view, term, order, sizes)
        if whole := along.reshaped(shape):
            return whole, joined
    moved = program.copied(along).reshaped(shape)
    assert moved is not None
    return moved, joined


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
