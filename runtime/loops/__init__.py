"""The masked autoregressive loops that run on the host and call engines."""
