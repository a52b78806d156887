"""Export of modules to ONNX graphs, also in lower precision."""
