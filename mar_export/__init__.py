"""Checkpoint to artifact: engines as ONNX, their parity with eager PyTorch, and benchmarks against it."""
