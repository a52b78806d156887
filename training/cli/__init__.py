"""The commands of `mar` that train, import and evaluate models."""
