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
from stategate.models.lifting.lift import Lifted

# The first page that knows a model is asked.
_PAGES: dict[Any, Callable[[Any], Lifted]] = {
    sb3: sb3.from_sb3,
    rsl_rl: rsl_rl.from_rsl_rl,
    skrl: skrl.from_skrl,
    rl_games: rl_games.from_rl_games,
    torchrl: torchrl.from_torchrl,
    cleanrl: cleanrl.from_cleanrl,
    huggingface: huggingface.from_huggingface,
}


def adapted(model: object) -> Lifted | None:
    """The step of a model whose package is recognised, or None."""
    return next(
        (step_of(model) for page, step_of in _PAGES.items() if page.recognises(model)), None
    )
