"""Where the elements of a tensor lie: most operators that only move them become another view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of one tensor or several."""

    dtype: str
    elements: int
    is_temporary: bool = True


def pointer(start: str, *terms: object) -> str:
    """A pointer and what is added to it, in C; zeros are left away."""
    return " + ".join([start, *(str(term) for term in terms if str(term) != "0")])


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a buffer."""

    buffer: str  # name of the buffer
    dtype: str  # NumPy's name of the elements' type
    shape: Shape  # extents
    strides: Shape  # from one element of each axis to the next, in elements; 0 repeats
    offset: int = 0  # of the first element

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, in the order of the axes."""
        return all(
            n == 1 or s == e
            for n, s, e in zip(self.shape, self.strides, strides_of(self.shape), strict=True)
        )

    def broadcast(self, shape: Shape) -> View:
        """The view as an operand of this shape, as ONNX broadcasts."""
        new = len(shape) - len(self.shape)
        extents = (1,) * new + self.shape
        strides = (0,) * new + self.strides
        strides = tuple(0 if n == 1 else s for n, s in zip(extents, strides, strict=True))
        return replace(self, shape=shape, strides=strides)

    def transposed(self, axes: Sequence[int]) -> View:
        """The view with its axes in another order."""
        return replace(
            self,
            shape=tuple(self.shape[a] for a in axes),
            strides=tuple(self.strides[a] for a in axes),
        )

    def reshaped(self, shape: Shape) -> View | None:
        """The view in another shape; None where its elements have to be moved for that."""
        if self.is_contiguous:
            return replace(self, shape=shape, strides=strides_of(shape))
        plain = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        if [n for n, _ in plain] != [n for n in shape if n != 1]:
            return None
        rest = iter(plain)  # only axes of extent 1 came or went
        return replace(
            self, shape=shape, strides=tuple(0 if n == 1 else next(rest)[1] for n in shape)
        )

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        """Some elements along an axis."""
        axis %= len(self.shape)
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = count, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def without(self, axis: int) -> View:
        """The view without an axis of extent 1."""
        axis %= len(self.shape)
        return replace(
            self,
            shape=self.shape[:axis] + self.shape[axis + 1 :],
            strides=self.strides[:axis] + self.strides[axis + 1 :],
        )


def strides_of(shape: Shape) -> Shape:
    """Strides of elements that lie one after the other."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def whole(buffer: str, dtype: str, shape: Shape) -> View:
    """All of a buffer."""
    return View(buffer, dtype, shape, strides_of(shape))


def walked(shape: Shape, views: Sequence[View]) -> tuple[Shape, list[Shape]]:
    """The fewest nested loops that visit all elements of views of one shape.

    Returns:
        Extents of the loops, and the strides of each view in them.
    """
    loops: list[tuple[int, tuple[int, ...]]] = []
    for axis, extent in enumerate(shape):
        strides = tuple(view.strides[axis] for view in views)
        if extent == 1:
            continue
        # Two loops are one where every view goes on at the end of the inner one.
        if loops and all(o == s * extent for o, s in zip(loops[-1][1], strides, strict=True)):
            loops[-1] = (loops[-1][0] * extent, strides)
        else:
            loops.append((extent, strides))
    return tuple(n for n, _ in loops), [tuple(s[i] for _, s in loops) for i in range(len(views))]
