"""Models of other packages as steps: one page a package, which stays outside.

A page knows its models by their structure, so that no package is imported for a model of another.
A policy's step is what the package does on a robot: the deterministic action of one observation.
What it keeps between calls becomes states with the session axis first, and what it calls a new
episode is the session's reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stategate.models.lifting.adapters import (
    cleanrl,
    huggingface,
    rl_games,
    rsl_rl,
    sb3,
    skrl,
    torchrl,
)
from stategate.models.lifting.adapters.cleanrl import from_cleanrl
from stategate.models.lifting.adapters.huggingface import from_huggingface
from stategate.models.lifting.adapters.rl_games import from_rl_games
from stategate.models.lifting.adapters.rsl_rl import from_rsl_rl
from stategate.models.lifting.adapters.sb3 import from_sb3
from stategate.models.lifting.adapters.skrl import from_skrl
from stategate.models.lifting.adapters.torchrl import from_torchrl
from stategate.models.lifting.lift import Lifted

__all__ = [
    "adapted",
    "from_cleanrl",
    "from_huggingface",
    "from_rl_games",
    "from_rsl_rl",
    "from_sb3",
    "from_skrl",
    "from_torchrl",
]

# Whether a page knows a model, and how the model becomes a step; the first that knows it is asked.
_PAGES: tuple[tuple[Callable[[Any], bool], Callable[[Any], Lifted]], ...] = (
    (sb3.recognises, from_sb3),
    (rsl_rl.recognises, from_rsl_rl),
    (skrl.recognises, from_skrl),
    (rl_games.recognises, from_rl_games),
    (torchrl.recognises, from_torchrl),
    (cleanrl.recognises, from_cleanrl),
    (huggingface.recognises, from_huggingface),
)


def adapted(model: object) -> Lifted | None:
    """The step of a model whose package is recognised, or None."""
    return next((step_of(model) for recognises, step_of in _PAGES if recognises(model)), None)
