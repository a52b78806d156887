"""Training of MAR models with PyTorch: models, data, the training loop, checkpoints, and evaluation of images."""
