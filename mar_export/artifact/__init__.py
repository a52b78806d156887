"""Export of a checkpoint to an artifact, verified against eager PyTorch."""
