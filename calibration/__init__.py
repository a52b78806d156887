"""Quantized engines from real sampling trajectories, and what they do to images."""
