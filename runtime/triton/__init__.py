"""A model for Triton Inference Server: the repository that its Python backend runs."""
