"""Checkpoints of runs and of published models: reading, writing, resizing, and inference of their config."""
