"""Memories in torch: one pure step with explicit state, and the controlled benchmark."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stategate.models.lifting.adapters import (
        from_cleanrl,
        from_huggingface,
        from_rl_games,
        from_rsl_rl,
        from_sb3,
        from_skrl,
        from_torchrl,
    )
    from stategate.models.lifting.lift import lift
    from stategate.models.step import StepModel, StepResult

__all__ = [
    "StepModel",
    "StepResult",
    "from_cleanrl",
    "from_huggingface",
    "from_rl_games",
    "from_rsl_rl",
    "from_sb3",
    "from_skrl",
    "from_torchrl",
    "lift",
]

_MODULES = {"lift": "lifting.lift", "StepModel": "step", "StepResult": "step"}


def __getattr__(name: str) -> object:
    # On demand, because all of them import torch, and the command line's help must not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'lifting.adapters')}"), name)
