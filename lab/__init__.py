"""What serves this house alone: tested, not installed; `python -m lab --help` lists its verbs."""

from stategate.common.onnx_runtime import silence

silence()
