"""Sampling settings, presets, plans, samplers and random numbers."""
