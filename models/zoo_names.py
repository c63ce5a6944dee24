"""What the models of the zoo are called; apart from the zoo itself, which needs torch."""

from __future__ import annotations

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
