"""Layers that stay in floating point unless asked otherwise: where an error is amplified most."""

from __future__ import annotations

# The embedding of timesteps, whose neighbours are a fraction of a percent apart; the projection that reads the
# sampler's state; the head's last one, whose error the first steps of a chain amplify.
KEPT = ("time_embed", "input_proj", "final_layer.linear", "z_proj")


def is_kept(layer: str) -> bool:
    """Whether `layer`, as "engine/layer" or without the engine, is one of them."""
    return any(part in layer for part in KEPT)
