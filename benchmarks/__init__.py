"""Measurements of this project that are not shipped: run them from a checkout, as `python -m benchmarks.NAME`."""
