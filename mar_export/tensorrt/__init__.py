"""Builds of TensorRT engines from the ONNX graphs of an artifact."""
