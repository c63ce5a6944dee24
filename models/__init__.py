"""Memories in torch: one pure step with explicit state, and the controlled benchmark."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stategate.models.lifting.adapters.cleanrl import from_cleanrl
    from stategate.models.lifting.adapters.huggingface import from_huggingface
    from stategate.models.lifting.adapters.rl_games import from_rl_games
    from stategate.models.lifting.adapters.rsl_rl import from_rsl_rl
    from stategate.models.lifting.adapters.sb3 import from_sb3
    from stategate.models.lifting.adapters.skrl import from_skrl
    from stategate.models.lifting.adapters.torchrl import from_torchrl
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

    module = _MODULES.get(name) or f"lifting.adapters.{name.removeprefix('from_')}"
    return getattr(import_module(f"{__name__}.{module}"), name)
