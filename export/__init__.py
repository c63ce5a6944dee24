"""From a model to a bundle: trace or adopt, check the graph, verify, seal."""

from stategate.common.onnx_runtime import silence

silence()
