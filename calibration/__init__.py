"""Tools that fit an artifact to its device: post-training quantization, and the choice of diffusion steps."""
