"""Recorded examples in one file: what requests ask for, and what was recorded with it."""
