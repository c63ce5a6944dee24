"""The stack's place and name until it was made for every family; gone after one version."""

from __future__ import annotations

import warnings

from stategate.models.memories.stack import Stack as DeltaStack

__all__ = ["DeltaStack"]

warnings.warn(
    "DeltaStack is stategate.models.memories.stack.Stack", DeprecationWarning, stacklevel=2
)
