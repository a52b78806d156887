"""The command line `mar`, and the commands that run a model."""
