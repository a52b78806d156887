"""The training loop: steps, runs, saved state, and profiling."""
