"""The choice of a diffusion solver, and of its steps in each iteration, for one model and one time budget."""
