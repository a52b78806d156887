"""PyTorch modules of the engines, arranged for fast inference."""
