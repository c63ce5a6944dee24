"""What comes in: a torch module, an ONNX file, a LEAPP export."""
