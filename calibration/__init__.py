"""Decides numbers: which threshold a gate gets, from closed-loop episodes."""

from stategate.common.onnx_runtime import silence

silence()
