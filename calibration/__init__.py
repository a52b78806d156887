"""Quantized engines from real sampling trajectories. Nothing here yet."""
