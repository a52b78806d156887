"""Benchmarks of runners, and the study of quality against time."""
