"""Memories in torch: one pure step with explicit state, and the controlled benchmark."""

from stategate.models.lift import lift
from stategate.models.step import StepModel, StepResult

__all__ = ["StepModel", "StepResult", "lift"]
