"""What serves this house alone: tested, not installed; `python -m lab --help` lists its verbs."""

from stategate.common.dependencies import silence

silence()
