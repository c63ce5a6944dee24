"""Other people's ONNX files, adopted as a newcomer would: ``make foreign``."""
