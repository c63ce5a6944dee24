"""What the models of the zoo are called; apart from the zoo itself, which needs torch."""

from __future__ import annotations

from stategate.contract.errors import ExportError
from stategate.contract.names import close_names

HELD_OUT_SEED = 1_000_003  # far from training seeds, which are small

TRAINED = ("aura-hard", "gdn2-hard", "gru-few")
SEEDED = (
    "gated-deltanet",
    "kda",
    "gated-deltanet2",
    "mamba2",
    "trim-kv",
    "sega",
    "lstm",
    "gru",
    "mingru",
)
NAMES = (*TRAINED, *SEEDED)


def unknown_model(name: str) -> ExportError:
    """What is raised where the zoo has no model of that name."""
    return ExportError(
        "the zoo has no such model",
        found=name,
        expected=" or ".join(close_names(name, NAMES) or sorted(NAMES)),
        remedy="list them with: stategate zoo; your own: path/to/module.py:factory",
    )
