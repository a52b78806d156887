"""Export of checkpoints to artifacts of ONNX engines, builds of TensorRT engines, and benchmarks."""
