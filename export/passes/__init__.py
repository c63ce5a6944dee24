"""Graph passes: from one ONNX graph to another."""
