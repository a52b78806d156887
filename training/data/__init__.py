"""Data of training: datasets, caches of latents, random numbers, and batches."""
