"""Python numbers beside float64 tensors, with all their bits.

The ONNX exporter writes every Python float as float32 and widens it then: 0.002 becomes
0.00200000009. A clock that adds it is wrong by 28 microseconds after ten minutes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class Float64Numbers(TorchFunctionMode):
    """While it is on, numbers in operations on float64 tensors alone are float64 tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_float64 = all(tensor.dtype in (torch.float64, torch.bool) for tensor in tensors)
        if not is_float64 or not any(_is_inexact(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        if func in (torch.full, torch.full_like):
            empty = func(*args, **kwargs)
            fill = args[1] if len(args) > 1 else kwargs["fill_value"]
            return empty.fill_(_exact(fill)) if empty.dtype == torch.float64 else empty
        if not wide or func is torch.tensor:
            return func(*args, **kwargs)
        try:
            return func(*pytree.tree_map(_exact, args), **pytree.tree_map(_exact, kwargs))
        except (TypeError, RuntimeError):  # an operation that takes a number there and no tensor
            return func(*args, **kwargs)


def _is_inexact(leaf: object) -> bool:
    return isinstance(leaf, float) and float(torch.tensor(leaf, dtype=torch.float32)) != leaf


def _exact(leaf: Any) -> Any:
    return torch.tensor(leaf, dtype=torch.float64) if isinstance(leaf, float) else leaf
