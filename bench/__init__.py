"""Measurement and pictures. Never imports torch."""

from stategate.common.onnx_runtime import silence

silence()
