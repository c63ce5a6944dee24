"""Python integers that became tensors: with a float they still give a float64."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_DIVISIONS = {"div", "true_divide", "__truediv__", "__rtruediv__", "__rdiv__"}


class Counts(TorchFunctionMode):
    """While it is on, ``count * 0.002`` has the 53 bits that it has in Python.

    In torch an integer tensor and a float give float32, and a clock of a few hours is coarse.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, Tensor] = {}  # kept, so that no identity is used again

    def __bool__(self) -> bool:
        return bool(self._counts)

    def hold(self, count: Tensor) -> Tensor:
        """Take a tensor for a Python integer."""
        self._counts[id(count)] = count
        return count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(id(tensor) in self._counts for tensor in tensors):
            return func(*args, **kwargs)
        if func.__name__ in _DIVISIONS or any(isinstance(leaf, float) for leaf in leaves):
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.double, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_floating_point():
            self.hold(result)
        return result
