"""Train MAR models with PyTorch: the model, its data, the trainer, and how good its images are."""
