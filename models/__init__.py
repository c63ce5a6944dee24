"""Memories in torch: one pure step with explicit state, and the controlled benchmark."""

from stategate.models.adapters import from_rsl_rl, from_sb3
from stategate.models.lift import lift
from stategate.models.step import StepModel, StepResult

__all__ = ["StepModel", "StepResult", "from_rsl_rl", "from_sb3", "lift"]
