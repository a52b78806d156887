"""Reports of a training run: progress, log, charts, sample images and environment."""
